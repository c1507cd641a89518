"""The tables of all runs: what was measured, which folders there are, and what they were made with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from hydraprune.report.experiment import Experiment, Setting, Variant
from hydraprune.report.matrix import Matrix, TableCell, percent
from hydraprune.report.spread import Accuracy
from hydraprune.runs.folder import RunFolder

STAR = " *"
FEWER = "* on fewer images than the clean accuracy: such figures are not to be set against others of their row."
UNITS = ((10**9, "G"), (10**6, "M"), (10**3, "k"), (1, ""))


@dataclass(frozen=True)
class Tile:
    """A figure to be seen first."""

    value: str
    what: str
    more: str


@dataclass(frozen=True)
class Written:
    """A recipe and the machine that it ran on, as text."""

    title: str
    recipe: str
    environment: str


def tiles(settings: Sequence[Setting]) -> list[Tile]:
    """The dense network, and the most robust one of each sparsity, if all runs share a setting."""
    if len(settings) != 1 or (attack := settings[0].attack()) is None:
        return []
    setting, found = settings[0], []
    groups = [[setting.dense] if setting.dense else [], *setting.by_sparsity()[:4]]
    for group in groups:
        best = max(
            (variant for variant in group if attack in variant.row.figures),
            key=lambda variant: variant.row.figures[attack].mean,
            default=None,
        )
        if best is not None:
            robust, clean = (percent(best.row.figures[name].mean) for name in (attack, "clean"))
            what = "dense" if best.dense else f"{best.row.removed} % removed"
            found.append(Tile(robust, what, f"{clean} % clean" + ("" if best.dense else f" · {best.label}")))
    return found


def results(settings: Sequence[Setting]) -> Matrix | None:
    """A row for each network: size and accuracies."""
    variants = [(setting, variant) for setting in settings for variant in setting.variants]
    names = [n for n in dict.fromkeys(n for s in settings for n in s.columns()) if not n.startswith("certified ")]
    several, counted = len(settings) > 1, any(_macs(variant) for _, variant in variants)
    rows = []
    for setting, variant in variants:
        row = variant.row
        cells = [
            TableCell(f"{100 * variant.sparsity:.1f}", variant.sparsity),
            TableCell(f"{row.kept:,}", row.kept, tip=f"of {row.total:,}"),
            TableCell(f"{row.smaller:.3g}×", row.smaller),
            *([_operations(variant)] if counted else []),
            *(accuracy(row.figures, name) for name in names),
            TableCell(str(row.runs), row.runs),
            *([TableCell(setting.name)] if several else []),
        ]
        rows.append((variant.label, cells))
    sizes = ["sparsity %", "weights kept", "smaller", *["MACs"] * counted]
    columns = sizes + [f"{name} %" for name in names] + ["runs"] + ["setting"] * several
    return Matrix("", "network", columns, rows, fewer(rows)) if rows else None


def fewer(rows: Sequence[tuple[str, Sequence[TableCell]]]) -> str:
    """What a star in one of the rows means; nothing without one."""
    return FEWER if any(cell.text.endswith(STAR) for _, cells in rows for cell in cells) else ""


def accuracy(figures: dict[str, Accuracy], name: str) -> TableCell:
    """One of a row's figures, marked if it was measured on fewer images than `clean`."""
    if name not in figures:
        return TableCell("–", -1.0)
    figure = figures[name]
    mark = STAR if figure.samples < figures["clean"].samples else ""
    return TableCell(figure.percent + mark, figure.mean, tip=figure.words)


def _macs(variant: Variant) -> int | None:
    record = variant.seeds[0].known
    return record.macs if record is not None else None


def _operations(variant: Variant) -> TableCell:
    """Multiply-accumulate operations of one image, those of removed weights left out."""
    macs = _macs(variant)
    if macs is None:
        return TableCell("–", -1.0)
    unit, name = next((unit, name) for unit, name in UNITS if macs >= unit or unit == 1)
    return TableCell(f"{macs / unit:.3g}{name}", macs, tip=f"{macs:,} multiply-accumulate operations of one image")


def folders(settings: Sequence[Setting], runs: Sequence[RunFolder]) -> Matrix:
    """A row for each run folder, those with a problem included."""
    experiments = [experiment for setting in settings for experiment in setting.experiments]
    names = {run: experiment.name for experiment in experiments for run in experiment.runs}
    rows = []
    for run in runs:
        hours = sum(epoch.seconds for epoch in run.epochs) / 3600
        state = "; ".join(run.problems)
        cells = [
            TableCell(names.get(run, "–")),
            TableCell(str(run.recipe.get("seed", "–"))),
            TableCell(str(len(run.measured)), len(run.measured)),
            TableCell(f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min", hours),
            TableCell(str(run.environment.get("device", "–"))),
            TableCell(state or "complete", look="bad words" if state else "good"),
        ]
        rows.append((run.path.name or str(run.path), cells))
    columns = ["experiment", "seed", "networks measured", "training", "device", "state"]
    return Matrix("Run folders", "run", columns, rows)


def written(experiment: Experiment) -> Written:
    """The recipe and the machine of the first run."""
    run = experiment.runs[0]
    recipe, environment = (
        yaml.safe_dump(value, sort_keys=False, allow_unicode=True) for value in (run.recipe, run.environment)
    )
    return Written(experiment.name, recipe, environment)
