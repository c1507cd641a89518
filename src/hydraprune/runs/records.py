"""What was measured of a run's networks: by its recipe, and later by commands of their own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hydraprune.core.errors import CheckpointError
from hydraprune.core.files import inside, read_json
from hydraprune.core.results import Record
from hydraprune.core.threat import ThreatModel
from hydraprune.runs.entries import Told, each, parsed
from hydraprune.runs.files import LATER, META, RESULTS

Others = dict[ThreatModel, Record]
"""What was found under further threat models."""


class StaleError(CheckpointError):
    """A file beside a checkpoint was made from other weights."""


def read_records(run: Path, told: Told | None = None) -> list[Record]:
    """The records of a run folder.

    Args:
        told: gets a line about each that is damaged, which is then left out and raises nothing.

    Raises:
        CheckpointError: if it has no readable `results.json`.
    """
    path = run / RESULTS
    damaged: list[str] = []
    found = each(Record, read_json(inside(run, path)), str(path), damaged.append)
    for problem in damaged:
        if told is None:
            raise CheckpointError(problem)
        told(problem)
    return found


def joined(records: Iterable[Record]) -> dict[str, Record]:
    """One record per network of a run: what several evaluations found of it, together."""
    merged: dict[str, Record] = {}
    for record in records:
        merged[record.stage] = merged[record.stage].joined(record) if record.stage in merged else record
    return merged


def fits(named: str | None, digest: str | None) -> bool:
    """Whether a file that names its weights, or does not, may be of those with `digest`, if that is known."""
    return None in (named, digest) or named == digest


def later_files(folder: Path) -> tuple[list[str], list[str]]:
    """The files of later commands beside a checkpoint, and those in its folders for other threat models."""
    here = [file for file in LATER if (folder / file).exists()]
    below = [path for file in LATER for path in sorted(folder.glob(f"*/{file}"))]
    return here, [f"{path.parent.name}/{path.name}" for path in below if not (path.parent / META).exists()]


def read_later(path: Path, stage: str, digest: str | None, images: str | None = None) -> Record:
    """The record of a later command.

    Raises:
        StaleError: if it is of other weights, or of other test images, than those with these digests.
        CheckpointError: if it is unreadable.
    """
    record = parsed(Record, read_json(path), str(path)).model_copy(update={"stage": stage})
    if not fits(record.network, digest):
        raise StaleError(f"{path} was measured on other weights than the checkpoint's; measure again, or remove it")
    if not fits(record.images, images):
        raise StaleError(f"{path} was measured on other test images than those of its run; look at it by itself")
    return record


def gathered(first: Record | None, here: Iterable[Record], below: Iterable[Record]) -> tuple[Record | None, Others]:
    """What is known of a network: under the threat model of its recipe, and under others.

    Args:
        first: what its run found.
        here: what later commands left beside its checkpoint.
        below: and in folders there.
    """
    own, rest = first, list[Record]()
    for record in here:
        if own is None or record.threat in (None, own.threat) or own.threat is None:
            # What the recipe measures in another way stays as the recipe has it.
            own = own.joined(record.without(own.differing(record))) if own is not None else record
        else:
            rest.append(record)
    others: Others = {}
    for record in [*rest, *below]:
        if record.threat is not None:
            known = others.get(record.threat)
            others[record.threat] = known.joined(record) if known is not None else record
    return own, others


def bare(record: Record) -> Record:
    """What a record says of a network whatever the threat model."""
    return record.model_copy(update={"robust_accuracy": {}, "robust_samples": {}, "verified": {}, "threat": None})
