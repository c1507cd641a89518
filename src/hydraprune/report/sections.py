"""What stands in each section of the page; titles and explanations are in `templates/page.html`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hydraprune.report import (
    charts,
    checks,
    claims,
    corruptions,
    costs,
    images,
    inside,
    overview,
    proofs,
    reported,
    threats,
)
from hydraprune.report.charts import Palette
from hydraprune.report.checks import Check
from hydraprune.report.experiment import Experiment, Setting, titled
from hydraprune.report.folder import Run
from hydraprune.report.matrix import Matrix
from hydraprune.report.training import training

PICTURED, PICTURES = 6, 2_000_000
"""Experiments whose layers, classes, examples and training are shown, and bytes of pictures, at most."""

SURFACE = "Rightwards along the attack, downwards in a random direction, in units of the radius."
CLASSES = "Change against the dense network of the same run, in percentage points."


@dataclass(frozen=True)
class Part:
    """Something to show, and the macro of `templates/parts.html` that shows it."""

    macro: str
    content: Any


def sections(runs: Sequence[Run], settings: Sequence[Setting], found: Sequence[Check]) -> dict[str, list[Part]]:
    """Key of a section -> its parts; a section without parts is not shown."""
    palette = Palette(entry.label for setting in settings for entry in setting.entries)
    experiments = [(setting, experiment) for setting in settings for experiment in setting.experiments]
    pictured = experiments[:PICTURED]
    entries = [entry for setting in settings for entry in setting.entries]
    chosen = [entry for entry in entries if entry.experiment in [experiment for _, experiment in pictured]]
    failed = [check for check in found if check.passed is False]
    shown = settings[:PICTURED]
    return {
        "results": _parts("table", [overview.results(settings)]),
        "sparsity": _parts("figure", (charts.against_sparsity(setting, palette) for setting in settings)),
        "security": _parts("figure", (f for setting in shown for f in charts.security(setting, palette))),
        "threats": [
            *_parts("table", [threats.table(entries)]),
            *_parts("figure", (f for setting in shown for f in threats.against_radius(setting, palette))),
        ],
        "proofs": [
            *_parts("figure", (f for setting in shown for f in charts.certified(setting, palette))),
            *_parts("table", (proofs.certified(entries), proofs.verified(entries))),
        ],
        "checks": [
            *_parts("table", [checks.overview(found), checks.told(failed)]),
            *([Part("folded", ("Every check", checks.told(found)))] if found else []),
            *_parts("figure", [checks.efforts([check for check in found if check.entry in chosen], palette)]),
            *_grid("Loss around the images", SURFACE, map(checks.surface, chosen)),
        ],
        "costs": [part for setting, experiment in pictured for part in _costs(setting, experiment)],
        "inside": [part for _, experiment in pictured for part in _inside(experiment, palette)],
        "examples": _galleries(map(images.gallery, chosen)),
        "training": _parts("figure", (training(experiment, palette) for _, experiment in pictured)),
        "paper": _parts("table", (reported.compared(setting) for setting in settings)),
        "claims": _parts("table", [claims.table(settings)]),
        "benchmark": [Part("benchmark", reported.benchmark())],
        "runs": [
            Part("table", overview.folders(settings, runs)),
            *(Part("written", overview.written(experiment)) for _, experiment in experiments),
        ],
    }  # fmt: skip


def _parts(macro: str, contents: Iterable[Any]) -> list[Part]:
    return [Part(macro, content) for content in contents if content is not None]


def _costs(setting: Setting, experiment: Experiment) -> list[Part]:
    pruned = [entry for entry in setting.pruned if entry.experiment is experiment]
    attack = costs.attack_on(pruned, setting.attack())
    classes = [costs.by_class(pruned, None), costs.by_class(pruned, attack) if attack else None]
    heading = titled(experiment.heading, "Accuracy by class")
    changes = costs.changes(titled(experiment.heading, "Changed answers and calibration"), pruned)
    both = [entry for entry in setting.entries if entry.experiment is experiment]
    corrupted = corruptions.corruptions(titled(experiment.heading, "Common corruptions"), both)
    return [*_parts("table", [changes, *corrupted]), *_grid(heading, CLASSES, classes)]


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
    found, size = [], 0
    for gallery in galleries:
        size += gallery.size if gallery is not None else 0
        if gallery is not None and size < PICTURES:
            found.append(gallery)
    return [Part("galleries", found)] if found else []


def _grid(title: str, caption: str, tables: Iterable[Matrix | None]) -> list[Part]:
    """Tables side by side."""
    found = [table for table in tables if table is not None]
    return [Part("grid", (title, caption, found))] if found else []
