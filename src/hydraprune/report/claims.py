"""Claims for the adversarial pruning benchmark (arXiv:2409.01249), beside the figures that it publishes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from hydraprune.report.experiment import Setting, adversary, kind_of, titled
from hydraprune.report.matrix import Matrix, TableCell
from hydraprune.report.overview import accuracy, fewer
from hydraprune.report.proofs import share
from hydraprune.report.reported import pair, published
from hydraprune.report.spread import Accuracy
from hydraprune.runs.contents import Claimed
from hydraprune.runs.entries import parsed
from hydraprune.runs.files import CLAIM
from hydraprune.runs.folder import Network
from hydraprune.runs.records import StaleError, fits


@dataclass(frozen=True)
class Claim:
    """What `hydraprune benchmark` measured of a network.

    Attributes:
        name: as the benchmark spells it.
        reasons: why it may not be entered; empty if it may.
        sparsity: share of zeros among the stored weights.
        figures: column -> accuracy, and the number of images that it was measured on.
    """

    name: str
    reasons: list[str]
    sparsity: float
    figures: dict[str, tuple[float, int]]


def table(settings: Sequence[Setting]) -> Matrix | None:
    """A row for each claim, over the seeds that make it."""
    groups: dict[tuple[str, str], list[tuple[Claim, str, str]]] = {}
    for setting in settings:
        for network in (n for experiment in setting.experiments for run in experiment.runs for n in run.networks):
            claim = network.json(CLAIM, partial(_claim, network))
            if claim is not None:
                found = claim, titled(setting.heading, network.name), network.stage
                groups.setdefault((claim.name, kind_of(network.run.recipe, network.stage)), []).append(found)
    names = list(dict.fromkeys(name for found in groups.values() for claim, *_ in found for name in claim.figures))
    rows = []
    for (name, _), every in groups.items():
        (_, network_of, stage), claims = every[0], [claim for claim, *_ in every]
        figures = {
            column: Accuracy.of([claim.figures[column][0] for claim in claims], claims[0].figures[column][1])
            for column in names
            if all(column in claim.figures for claim in claims)
        }
        reasons = "; ".join(dict.fromkeys(reason for claim in claims for reason in claim.reasons))
        cells = [
            TableCell(network_of, tip=stage),
            share([claim.sparsity for claim in claims]),
            *(accuracy(figures, column) for column in names),
            pair(published(name)),
            TableCell(str(len(claims)), len(claims)),
            TableCell(f"no: {reasons}" if reasons else "✓ yes", look="words" if reasons else "good"),
        ]
        rows.append((name, cells))
    columns = ["network", "sparsity %", *(f"{name} %" for name in names), "published %", "runs", "may be entered"]
    caption = (
        "Sparsity is measured, as zeros among the stored weights. Benchmark: its protocol; ours: the stricter one, an "
        "image counting that no attack breaks (worst-case). Published: the benchmark's figure for the method of that "
        f"name under AutoAttack, and its clean accuracy in brackets. {fewer(rows)}"
    )
    return Matrix("", "claim", columns, rows, caption) if rows else None


def _claim(network: Network, value: Any) -> Claim:
    """Check and read `claim.json`.

    Raises:
        StaleError: if it is of other weights than the checkpoint's.
        CheckpointError: if a figure is no share of images.
    """
    found = parsed(Claimed, value, CLAIM, "run `hydraprune benchmark` again")
    if not fits(found.sha256, network.meta.network):
        raise StaleError("it was measured on other weights than the checkpoint's; run `hydraprune benchmark` again")
    official = found.benchmark
    figures = {"clean": (official.clean_accuracy, official.autoattack.samples)}
    every = {"benchmark: AutoAttack": official.autoattack, "benchmark: FMN": official.fmn}
    every |= {f"ours: {attack}": figure for attack, figure in found.strict.attacks.items()}
    for column, figure in every.items():
        where = adversary({"norm": "linf", "eps": figure.eps})
        figures[f"{column}, {where}"] = (figure.accuracy, figure.samples)
    return Claim(found.name, found.reasons, found.sparsity, figures)
