"""What pruning costs beyond the mean: classes that lose more than others, changed answers, calibration."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from hydraprune.evaluation.costs import calibration_error, flips, per_class
from hydraprune.evaluation.verdicts import Evaluation, load
from hydraprune.report.experiment import Variant
from hydraprune.report.matrix import Matrix, TableCell, points, shaded, signed
from hydraprune.report.proofs import share
from hydraprune.runs.files import VERDICTS
from hydraprune.runs.folder import Network
from hydraprune.runs.records import StaleError, fits

CLASSES = 20
"""Rows of a table of classes; where there are more, those that lose most."""


def verdicts(network: Network | None) -> Evaluation | None:
    """Those beside a network's checkpoint."""
    return network.read(partial(_fresh, network), VERDICTS) if network is not None else None


def _fresh(network: Network, path: Path) -> Evaluation:
    """Raises StaleError for verdicts on other weights than the checkpoint's."""
    found, origin = load(path)
    if not fits(origin.network, network.meta.network):
        raise StaleError("they are of other weights than the checkpoint's; run the recipe again")
    return found


def changes(title: str, variants: list[Variant]) -> Matrix | None:
    """What differs between the pruned networks and the dense one of their run."""
    rows = [(variant.name, cells) for variant in variants if (cells := _changes(variant))]
    columns = ["changed %", "lost %", "won %", "ECE %", "ECE dense %"]
    caption = (
        "Changed: images that get another class than from the dense network of the same run. Lost: right before, wrong "
        "now; won: the reverse. ECE: the mean gap between confidence and accuracy (15 bins)."
    )
    return Matrix(title, "network", columns, rows, caption) if rows else None


def _changes(variant: Variant) -> list[TableCell]:
    found = []
    for before, after in _pairs(variant):
        differ = flips(after.label, before.prediction, after.prediction)
        errors = [calibration_error(one.confidence, one.correct) for one in (after, before)]
        found.append([*(differ[kind].double().mean().item() for kind in ("changed", "lost", "won")), *errors])
    return [share(values) for values in zip(*found, strict=True)]


def attack_on(variants: list[Variant], wanted: str | None) -> str | None:
    """The attack of which verdicts are there for all networks: `wanted`, or else the strongest on the first one."""
    pairs = [pair for variant in variants for pair in _pairs(variant)]
    known = (
        [name for name in pairs[0][1].survived if all(name in v.survived for p in pairs for v in p)] if pairs else []
    )
    return wanted if wanted in known else min(known, key=lambda name: pairs[0][1].robust_accuracy[name], default=None)


def by_class(variants: list[Variant], attack: str | None) -> Matrix | None:
    """Points that each class loses to pruning: clean accuracy, or accuracy under `attack`."""
    columns = [(variant.name, lost) for variant in variants if (lost := _lost(variant, attack)) is not None]
    if not columns:
        return None
    every = torch.stack([lost for _, lost in columns], dim=1)
    order = every.nan_to_num().amin(1).argsort()[:CLASSES].sort().values.tolist()
    largest = max(0.1, float(every.nan_to_num().abs().max()))

    def cell(row: int, column: int) -> TableCell:
        value = float(every[order[row], column])
        return TableCell("–") if value != value else TableCell(points(value), value, signed(value, largest))

    what = f"accuracy under {attack}" if attack else "clean accuracy"
    caption = f"The {CLASSES} classes that lose most." if len(every) > CLASSES else ""
    return shaded(what, "class", [name for name, _ in columns], [str(c) for c in order], cell, caption)


def _pairs(variant: Variant) -> list[tuple[Evaluation, Evaluation]]:
    """(dense, pruned) verdicts of each run that has both."""
    pairs = [(verdicts(network.run.dense), verdicts(network)) for network in variant.seeds]
    return [(before, after) for before, after in pairs if before and after and torch.equal(before.label, after.label)]


def _lost(variant: Variant, attack: str | None) -> Tensor | None:
    """(K,) change per class, mean over seeds."""
    found = []
    for before, after in _pairs(variant):
        if attack is None or (attack in before.survived and attack in after.survived):
            then, now = (v.survived[attack] if attack else v.correct for v in (before, after))
            classes = int(after.label.max()) + 1
            found.append(per_class(after.label, now, classes) - per_class(after.label, then, classes))
    return torch.stack(found).nanmean(0) if found else None
