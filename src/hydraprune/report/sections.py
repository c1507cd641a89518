"""What stands in each section of the page; titles and explanations are in `templates/page.html`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from hydraprune.report import charts, costs, images, inside, proofs, reported
from hydraprune.report.charts import Palette
from hydraprune.report.experiment import Entry, Experiment, Setting
from hydraprune.report.folder import Run
from hydraprune.report.matrix import Cell, Matrix, percent

PICTURED = 8
"""Experiments, at most, whose layers, classes, examples and training are shown."""


@dataclass(frozen=True)
class Part:
    """Something to show, and the macro of `templates/parts.html` that shows it."""

    macro: str
    content: Any


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


def sections(runs: Sequence[Run], settings: Sequence[Setting]) -> dict[str, list[Part]]:
    """Key of a section -> its parts; a section without parts is not shown."""
    palette = Palette(entry.label for setting in settings for entry in setting.entries)
    experiments = [(setting, experiment) for setting in settings for experiment in setting.experiments]
    pictured = experiments[:PICTURED]
    groups = [(e.name, [entry for entry in s.entries if entry.experiment == e.name]) for s, e in pictured]
    seen = [(e.name, run) for _, e in pictured if (run := next((r for r in e.runs if r.pruned), None)) is not None]
    entries = [entry for setting in settings for entry in setting.entries]
    return {
        "results": _parts("table", (_results(setting) for setting in settings)),
        "sparsity": _parts("figure", (charts.against_sparsity(setting, palette) for setting in settings)),
        "security": _parts("figure", (f for setting in settings for f in charts.security(setting, palette))),
        "proofs": [
            *_parts("figure", (f for setting in settings for f in charts.certified(setting, palette))),
            *_parts("table", (proofs.certified(entries), proofs.verified(entries))),
        ],
        "checks": [
            *_parts("table", [proofs.checks([network for run in runs for network in run.measured])]),
            *_parts("table", (proofs.surface(network) for _, run in seen for network in run.measured)),
        ],
        "costs": [part for setting, (name, group) in zip((s for s, _ in pictured), groups, strict=True)
                  for part in _costs(name, group, setting.attack())],
        "inside": [part for name, run in seen for part in _inside(name, run, palette)],
        "examples": _parts("gallery", (images.gallery(entry) for _, group in groups for entry in group)),
        "training": _parts("figure", (charts.training(experiment, palette) for _, experiment in pictured)),
        "paper": _parts("table", (reported.compared(setting) for setting in settings)),
        "benchmark": [Part("benchmark", reported.benchmark())],
        "runs": [Part("table", _runs(experiments, runs)), *(Part("written", _written(e)) for _, e in experiments)],
    }  # fmt: skip


def _parts(macro: str, contents: Iterable[Any]) -> list[Part]:
    return [Part(macro, content) for content in contents if content is not None]


def _results(setting: Setting) -> Matrix | None:
    """A row for each network: size and accuracies."""
    names = [name for name in setting.columns() if not name.startswith("certified ")]
    several = len(setting.experiments) > 1
    rows = []
    for entry in setting.entries:
        row = entry.row
        cells = [
            *([Cell(entry.experiment)] if several else []),
            Cell(f"{100 * entry.sparsity:.1f}", entry.sparsity),
            Cell(f"{row['kept']:,}", row["kept"], tip=f"of {row['total']:,}"),
            Cell(f"{row['total'] / max(row['kept'], 1):.3g}×", row["total"] / max(row["kept"], 1)),
            *(_figure(row["figures"].get(name)) for name in names),
            Cell(str(row["runs"]), row["runs"]),
        ]
        rows.append((entry.label, cells))
    columns = ["sparsity %", "weights kept", "smaller", *(f"{name} %" for name in names), "runs"]
    return Matrix(setting.name, "network", ["experiment"] * several + columns, rows) if rows else None


def _figure(figure: dict[str, Any] | None) -> Cell:
    if figure is None:
        return Cell("–", -1.0)
    return Cell(percent(figure["mean"], figure["std"]), figure["mean"], tip=charts.spread_of(figure))


def _costs(name: str, entries: list[Entry], attack: str | None) -> list[Part]:
    pruned = [entry for entry in entries if not entry.dense]
    tables = [costs.changes(name, pruned), costs.by_class(name, pruned, None)]
    return _parts("table", [*tables, costs.by_class(name, pruned, attack) if attack else None])


def _inside(name: str, run: Run, palette: Palette) -> list[Part]:
    return [
        *_parts("figure", [inside.histograms(name, run, palette)]),
        *_parts("table", [inside.layers(name, run), inside.overlap(name, run)]),
    ]


def _runs(experiments: Sequence[tuple[Setting, Experiment]], runs: Sequence[Run]) -> Matrix:
    """A row for each run folder, those with a problem included."""
    names = {id(run): experiment.name for _, experiment in experiments for run in experiment.runs}
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


def _written(experiment: Experiment) -> Written:
    run = experiment.runs[0]
    recipe, environment = (
        yaml.safe_dump(value, sort_keys=False, allow_unicode=True) for value in (run.recipe, run.environment)
    )
    return Written(experiment.name, recipe, environment)
