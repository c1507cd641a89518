"""The tables of all runs: what was measured, which folders there are, and what they were made with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from hydraprune.report.charts import spread_of
from hydraprune.report.experiment import Entry, Experiment, Setting
from hydraprune.report.folder import Run
from hydraprune.report.matrix import Cell, Matrix, percent

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
            (entry for entry in group if attack in entry.row["figures"]),
            key=lambda entry: entry.row["figures"][attack]["mean"],
            default=None,
        )
        if best is not None:
            robust, clean = (percent(best.row["figures"][name]["mean"]) for name in (attack, "clean"))
            what = "dense" if best.dense else f"{100 * best.sparsity:.3g} % removed"
            found.append(Tile(robust, what, f"{clean} % clean" + ("" if best.dense else f" · {best.label}")))
    return found


def results(settings: Sequence[Setting]) -> Matrix | None:
    """A row for each network: size and accuracies. What experiments share, such as a pre-training, is one row."""
    entries = [(setting, entry) for setting in settings for entry in _once(setting.entries)]
    names = [n for n in dict.fromkeys(n for s in settings for n in s.columns()) if not n.startswith("certified ")]
    several, experiments = len(settings) > 1, any(entry.experiment.heading for _, entry in entries)
    counted = any(_macs(entry) for _, entry in entries)
    rows = []
    for setting, entry in entries:
        row = entry.row
        smaller = row["total"] / max(row["kept"], 1)
        cells = [
            *([Cell("shared" if _shared(entry, setting) else entry.experiment.name)] if experiments else []),
            Cell(f"{100 * entry.sparsity:.1f}", entry.sparsity),
            Cell(f"{row['kept']:,}", row["kept"], tip=f"of {row['total']:,}"),
            Cell(f"{smaller:.3g}×", smaller),
            *([_operations(entry)] if counted else []),
            *(accuracy(row["figures"], name) for name in names),
            Cell(str(row["runs"]), row["runs"]),
            *([Cell(setting.name)] if several else []),
        ]
        rows.append((entry.row["pruner"] if experiments else entry.label, cells))
    sizes = ["sparsity %", "weights kept", "smaller", *["MACs"] * counted]
    columns = ["experiment"] * experiments + sizes + [f"{name} %" for name in names] + ["runs"] + ["setting"] * several
    return Matrix("", "network", columns, rows, fewer(rows)) if rows else None


def _digests(entry: Entry) -> set[str]:
    """Of its weights in each run; none if a record does not say."""
    found = {network.record.network for network in entry.seeds if network.record is not None}
    return {digest for digest in found if digest is not None} if None not in found else set()


def _once(entries: Sequence[Entry]) -> list[Entry]:
    """Without those whose networks are all among another's, that of most runs staying."""
    digests = [_digests(entry) for entry in entries]
    kept: list[int] = []
    for number in sorted(range(len(entries)), key=lambda number: -len(digests[number])):
        if not digests[number] or not any(digests[number] <= digests[other] for other in kept):
            kept.append(number)
    return [entries[number] for number in sorted(kept)]


def _shared(entry: Entry, setting: Setting) -> bool:
    """Whether another experiment has one of the same networks."""
    others = (other for other in setting.entries if other.experiment is not entry.experiment)
    return any(_digests(entry) & _digests(other) for other in others)


def fewer(rows: Sequence[tuple[str, Sequence[Cell]]]) -> str:
    """What a star in one of the rows means; nothing without one."""
    return FEWER if any(cell.text.endswith(STAR) for _, cells in rows for cell in cells) else ""


def accuracy(figures: dict[str, Any], name: str) -> Cell:
    """One of a row's figures, marked if it was measured on fewer images than `clean`."""
    if name not in figures:
        return Cell("–", -1.0)
    figure = figures[name]
    mark = STAR if figure["samples"] < figures["clean"]["samples"] else ""
    return Cell(percent(figure["mean"], figure["std"]) + mark, figure["mean"], tip=spread_of(figure))


def _macs(entry: Entry) -> int | None:
    record = entry.seeds[0].record
    return record.macs if record is not None else None


def _operations(entry: Entry) -> Cell:
    """Multiply-accumulate operations of one image, those of removed weights left out."""
    macs = _macs(entry)
    if macs is None:
        return Cell("–", -1.0)
    unit, name = next((unit, name) for unit, name in UNITS if macs >= unit or unit == 1)
    return Cell(f"{macs / unit:.3g}{name}", macs, tip=f"{macs:,} multiply-accumulate operations of one image")


def folders(settings: Sequence[Setting], runs: Sequence[Run]) -> Matrix:
    """A row for each run folder, those with a problem included."""
    names = {
        id(run): experiment.name
        for setting in settings
        for experiment in setting.experiments
        for run in experiment.runs
    }
    rows = []
    for run in runs:
        hours = sum(float(line.get("seconds") or 0) for line in run.metrics) / 3600
        state = "; ".join(run.problems)
        cells = [
            Cell(names.get(id(run), "–")),
            Cell(str(run.recipe.get("seed", "–"))),
            Cell(str(len(run.measured)), len(run.measured)),
            Cell(f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min", hours),
            Cell(str(run.environment.get("device", "–"))),
            Cell(state or "complete", look="bad words" if state else "good"),
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
