"""What stands in each section of the page; titles and explanations are in `templates/page.html`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from hydraprune.report import charts, checks, costs, images, inside, proofs, reported
from hydraprune.report.charts import Palette
from hydraprune.report.experiment import Entry, Experiment, Setting, titled
from hydraprune.report.folder import Run
from hydraprune.report.matrix import Cell, Matrix, percent
from hydraprune.report.training import training

PICTURED = 8
"""Experiments, at most, whose layers, classes, examples and training are shown."""

UNITS = ((10**9, "G"), (10**6, "M"), (10**3, "k"), (1, ""))
SURFACE = "Rightwards along the attack, downwards in a random direction, in units of the radius."
CLASSES = "Change against the dense network of the same run, in percentage points."


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
    entries = [entry for setting in settings for entry in setting.entries]
    chosen = [entry for entry in entries if any(entry.experiment is experiment for _, experiment in pictured)]
    found = checks.checks(entries)
    failed = [check for check in found if check.passed is False]
    return {
        "results": _parts("table", (_results(setting) for setting in settings)),
        "sparsity": _parts("figure", (charts.against_sparsity(setting, palette) for setting in settings)),
        "security": _parts("figure", (f for setting in settings for f in charts.security(setting, palette))),
        "proofs": [
            *_parts("figure", (f for setting in settings for f in charts.certified(setting, palette))),
            *_parts("table", (proofs.certified(entries), proofs.verified(entries))),
        ],
        "checks": [
            *_parts("table", [checks.overview(found), checks.told(failed)]),
            *([Part("folded", ("Every check", checks.told(found)))] if found else []),
            *_grid("Loss around an image", SURFACE, map(checks.surface, chosen)),
        ],
        "costs": [part for setting, experiment in pictured for part in _costs(setting, experiment)],
        "inside": [part for _, experiment in pictured for part in _inside(experiment, palette)],
        "examples": _galleries(map(images.gallery, chosen)),
        "training": _parts("figure", (training(experiment, palette) for _, experiment in pictured)),
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
    counted = any(_macs(entry) for entry in setting.entries)
    rows = []
    for entry in setting.entries:
        row = entry.row
        cells = [
            *([Cell(entry.experiment.name)] if several else []),
            Cell(f"{100 * entry.sparsity:.1f}", entry.sparsity),
            Cell(f"{row['kept']:,}", row["kept"], tip=f"of {row['total']:,}"),
            Cell(f"{row['total'] / max(row['kept'], 1):.3g}×", row["total"] / max(row["kept"], 1)),
            *([_operations(entry)] if counted else []),
            *(_figure(row["figures"].get(name)) for name in names),
            Cell(str(row["runs"]), row["runs"]),
        ]
        rows.append((entry.label, cells))
    columns = ["sparsity %", "weights kept", "smaller", *["MACs"] * counted, *(f"{name} %" for name in names), "runs"]
    return Matrix(setting.heading, "network", ["experiment"] * several + columns, rows) if rows else None


def _figure(figure: dict[str, Any] | None) -> Cell:
    if figure is None:
        return Cell("–", -1.0)
    return Cell(percent(figure["mean"], figure["std"]), figure["mean"], tip=charts.spread_of(figure))


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


def _costs(setting: Setting, experiment: Experiment) -> list[Part]:
    pruned, attack = [entry for entry in setting.pruned if entry.experiment is experiment], setting.attack()
    classes = [costs.by_class(pruned, None), costs.by_class(pruned, attack) if attack else None]
    heading = titled(experiment.heading, "Accuracy by class")
    changes = costs.changes(titled(experiment.heading, "Changed answers and calibration"), pruned)
    return [*_parts("table", [changes]), *_grid(heading, CLASSES, classes)]


def _inside(experiment: Experiment, palette: Palette) -> list[Part]:
    run = next((run for run in experiment.runs if run.pruned), None)
    if run is None:
        return []
    heading = experiment.heading
    return [
        *_parts("figure", [inside.histograms(heading, run, palette)]),
        *_parts("table", [inside.layers(heading, run), inside.overlap(heading, run)]),
    ]


def _galleries(galleries: Iterable[images.Gallery | None]) -> list[Part]:
    found = [gallery for gallery in galleries if gallery is not None]
    return [Part("galleries", found)] if found else []


def _grid(title: str, caption: str, tables: Iterable[Matrix | None]) -> list[Part]:
    """Tables side by side."""
    found = [table for table in tables if table is not None]
    return [Part("grid", (title, caption, found))] if found else []


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
