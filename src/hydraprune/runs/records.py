"""What was measured of a run's networks: by its recipe, and later by commands of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hydraprune.core.errors import CheckpointError
from hydraprune.core.files import inside, read_json
from hydraprune.core.results import Record
from hydraprune.core.threat import ThreatModel
from hydraprune.runs.entries import Told, each, parsed

RESULTS, META, MODEL = "results.json", "checkpoint.json", "model.safetensors"
LATER = ("evaluation.json", "verification.json", "certification.json")
"""What commands write beside a checkpoint, and in a folder there for another threat model than its recipe's."""


class StaleError(CheckpointError):
    """A file beside a checkpoint was made from other weights."""


class Measured(NamedTuple):
    """What is known of one network.

    Attributes:
        record: under the threat model of its recipe; without attacks if it met other threat models only.
        others: under other threat models.
        complete: whether it was measured under that of its recipe.
    """

    record: Record
    others: dict[ThreatModel, Record]
    complete: bool


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


def measured(run: Path, told: Told | None = None) -> dict[str, Measured]:
    """Stage -> what is known of its network; what is damaged, or of other weights than its checkpoint's, is left out.

    Args:
        told: gets a line about each that is left out.

    Raises:
        CheckpointError: if nothing was measured, or, unless there is `told`, a file is damaged.
    """
    metas = {}
    for file in sorted(run.rglob(META)):
        with _left_out(told):
            metas[file.parent.relative_to(run).as_posix()] = read_json(inside(run, file))
    digests = {stage: digest_of(meta) for stage, meta in metas.items()}
    later = any(file for stage in digests for files in later_files(run / stage) for file in files)
    records: dict[str, Record] = {}
    if (run / RESULTS).exists():
        with _left_out(told):
            records = joined(read_records(run, told))
    elif not later:
        raise CheckpointError(f"{run / RESULTS} is missing")
    found = {}
    for stage in dict.fromkeys([*records, *digests]):
        first, digest = records.get(stage), digests.get(stage)
        if first is not None and not fits(first.network, digest):
            why = f"{stage} was measured on other weights than its checkpoint's; run the recipe again"
            if told is not None:
                told(f"{run / RESULTS}: {why}")
            first = None
        images = images_of(metas.get(stage))
        whole = gathered(first, run / stage, partial(_unless_stale, run, stage, digest, images, told))
        if whole is not None:
            found[stage] = whole
    return found


def _unless_stale(
    run: Path, stage: str, digest: str | None, images: str | None, told: Told | None, file: str
) -> Record | None:
    try:
        return read_later(inside(run, run / stage / file), stage, digest, images)
    except CheckpointError as error:
        if told is not None:
            told(str(error))
        elif not isinstance(error, StaleError):
            raise
        return None


@contextmanager
def _left_out(told: Told | None) -> Iterator[None]:
    """Inside, what is damaged is told and left out, if there is someone to tell."""
    try:
        yield
    except CheckpointError as error:
        if told is None:
            raise
        told(str(error))


def digest_of(meta: object) -> str | None:
    """Of the weights that `checkpoint.json` stands for; None if it does not say."""
    digests = meta.get("sha256") if isinstance(meta, dict) else None
    digest = digests.get(MODEL) if isinstance(digests, dict) else None
    return digest if isinstance(digest, str) else None


def images_of(meta: object) -> str | None:
    """Digest of the test images of the run of a `checkpoint.json`; None if it does not say."""
    digests = meta.get("data") if isinstance(meta, dict) else None
    images = digests.get("test") if isinstance(digests, dict) else None
    return images if isinstance(images, str) else None


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


def gathered(first: Record | None, folder: Path, read: Callable[[str], Record | None]) -> Measured | None:
    """The record of a run, and what later commands found of the same network; None if there is nothing.

    Args:
        first: of the run.
        folder: of the checkpoint.
        read: makes a record of a file in that folder; None leaves it out.
    """
    here, below = later_files(folder)
    own, rest = first, list[Record]()
    for record in _read(here, read):
        if own is None or record.threat in (None, own.threat) or own.threat is None:
            # What the recipe measures in another way stays as the recipe has it.
            own = own.joined(record.without(own.differing(record))) if own is not None else record
        else:
            rest.append(record)
    others: dict[ThreatModel, Record] = {}
    for record in [*rest, *_read(below, read)]:
        if record.threat is not None:
            known = others.get(record.threat)
            others[record.threat] = known.joined(record) if known is not None else record
    if own is not None:
        return Measured(own, others, True)
    bare: dict[str, Any] = {"robust_accuracy": {}, "robust_samples": {}, "verified": {}, "threat": None}
    return Measured(next(iter(others.values())).model_copy(update=bare), others, False) if others else None


def _read(files: Iterable[str], read: Callable[[str], Record | None]) -> list[Record]:
    return [record for file in files if (record := read(file)) is not None]
