"""What stands in each section of the page; titles and explanations are in `templates/page.html`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hydraprune.report import (
    artifacts,
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
from hydraprune.report.chart import Palette
from hydraprune.report.checks import CheckRow
from hydraprune.report.experiment import Setting, Variant, titled
from hydraprune.report.matrix import Matrix
from hydraprune.report.training import training
from hydraprune.runs.folder import RunFolder

PICTURED, PICTURES = 12, 2_000_000
"""Networks whose layers, classes, examples and training are shown, and bytes of pictures, at most."""
SETTINGS = 6
"""Settings whose security curves and other charts over radii are shown, at most."""

SURFACE = "Rightwards along the attack, downwards in a random direction, in units of the radius."
CLASSES = "Change against the dense network of the same run, in percentage points."


@dataclass(frozen=True)
class SectionPart:
    """Something to show, and the macro of `templates/parts.html` that shows it."""

    macro: str
    content: Any


def sections(
    runs: Sequence[RunFolder], settings: Sequence[Setting], found: Sequence[CheckRow]
) -> dict[str, list[SectionPart]]:
    """Key of a section -> its parts; a section without parts is not shown."""
    shown = settings[:SETTINGS]
    palette = Palette(variant.label for setting in settings for variant in setting.variants)
    experiments = [experiment for setting in settings for experiment in setting.experiments]
    variants = [variant for setting in settings for variant in setting.variants]
    chosen = variants[:PICTURED]
    pictured = [(setting, [variant for variant in setting.variants if variant in chosen]) for setting in shown]
    failed = [row for row in found if row.check.passed is False]
    return {
        "results": _parts("table", [overview.results(settings)]),
        "sparsity": _parts("figure", (charts.against_sparsity(setting, palette) for setting in settings)),
        "security": _parts("figure", (f for setting in shown for f in charts.security(setting, palette))),
        "threats": [
            *_parts("table", [threats.table(variants)]),
            *_parts("figure", (f for setting in shown for f in threats.against_radius(setting, palette))),
        ],
        "proofs": [
            *_parts("figure", (f for setting in shown for f in charts.certified(setting, palette))),
            *_parts("table", (proofs.certified(variants), proofs.verified(variants))),
        ],
        "checks": [
            *_parts("table", [checks.overview(found), checks.told(failed)]),
            *([SectionPart("folded", ("Every check", checks.told(found)))] if found else []),
            *_parts("figure", [checks.efforts([row for row in found if row.variant in chosen], palette)]),
            *_grid("Loss around the images", SURFACE, map(checks.surface, chosen)),
        ],
        "costs": [part for setting, some in pictured for part in _costs(setting, some)],
        "inside": [part for setting, some in pictured for part in _inside(setting, some, palette)],
        "artifacts": [
            *_parts("table", [artifacts.table(variants)]),
            *_parts("figure", (artifacts.figure(setting) for setting in shown)),
            *_parts("table", artifacts.timed(variants)),
        ],
        "examples": _galleries(map(images.gallery, chosen)),
        "training": _parts("figure", (f for setting in shown for f in training(setting, palette))),
        "paper": _parts("table", (reported.compared(setting) for setting in settings)),
        "claims": _parts("table", [claims.table(settings)]),
        "benchmark": [SectionPart("benchmark", reported.benchmark())],
        "runs": [
            SectionPart("table", overview.folders(settings, runs)),
            *(SectionPart("written", overview.written(experiment)) for experiment in experiments),
        ],
    }  # fmt: skip


def _parts(macro: str, contents: Iterable[Any]) -> list[SectionPart]:
    return [SectionPart(macro, content) for content in contents if content is not None]


def _costs(setting: Setting, variants: list[Variant]) -> list[SectionPart]:
    pruned = [variant for variant in variants if not variant.dense]
    attack = costs.attack_on(pruned, setting.attack())
    classes = [costs.by_class(pruned, None), costs.by_class(pruned, attack) if attack else None]
    changes = costs.changes(titled(setting.heading, "Changed answers and calibration"), pruned)
    corrupted = corruptions.corruptions(titled(setting.heading, "Common corruptions"), variants)
    heading = titled(setting.heading, "Accuracy by class")
    return [*_parts("table", [changes, *corrupted]), *_grid(heading, CLASSES, classes)]


def _inside(setting: Setting, variants: list[Variant], palette: Palette) -> list[SectionPart]:
    pruned, heading = [variant for variant in variants if not variant.dense], setting.heading
    return [
        *_parts("figure", [inside.histograms(heading, pruned, palette)]),
        *_parts("table", [inside.layers(heading, pruned), inside.overlap(heading, pruned)]),
    ]


def _galleries(galleries: Iterable[images.Gallery | None]) -> list[SectionPart]:
    found, size = [], 0
    for gallery in galleries:
        size += gallery.size if gallery is not None else 0
        if gallery is not None and size < PICTURES:
            found.append(gallery)
    return [SectionPart("galleries", found)] if found else []


def _grid(title: str, caption: str, tables: Iterable[Matrix | None]) -> list[SectionPart]:
    """Tables side by side."""
    found = [table for table in tables if table is not None]
    return [SectionPart("grid", (title, caption, found))] if found else []
