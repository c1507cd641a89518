"""Training curves: what was measured after each epoch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from hydraprune.report.chart import Chart, Palette, Panels, Point, Series
from hydraprune.report.experiment import Setting, kind_of, titled, up_to
from hydraprune.report.plot import rounded
from hydraprune.runs.contents import Epoch, is_share
from hydraprune.runs.folder import RunFolder

EPOCHS, LINES = 40, 12
"""Points of a line, and lines of a chart, at most."""


def training(setting: Setting, palette: Palette) -> list[Panels]:
    """For each stage a chart of each metric: a line for the first run of each experiment, one where they share it."""
    stages: dict[str, dict[str, tuple[Series, list[Epoch]]]] = {}
    for experiment in setting.experiments[:LINES]:
        run = next((run for run in experiment.runs if run.epochs), experiment.runs[0])
        logs: dict[str, list[Epoch]] = {}
        for epoch in run.epochs:
            logs.setdefault(epoch.stage, []).append(epoch)
        for stage, epochs in logs.items():
            line = _line(setting, run, stage, palette)
            stages.setdefault(stage, {}).setdefault(kind_of(run.recipe, stage), (line, epochs))
    return [
        Panels(titled(setting.heading, stage), [_chart([*logs.values()], name) for name in _metrics(logs.values())])
        for stage, logs in stages.items()
    ]


def _line(setting: Setting, run: RunFolder, stage: str, palette: Palette) -> Series:
    """How the line of a stage is called and drawn, without points."""
    mine = [variant for variant in setting.variants if run in variant.runs and not variant.dense]
    if not mine or not any(one.get("pruner") for one in up_to(run.recipe, stage)["stages"]):
        return Series("", "ink", ())
    variant = next((variant for variant in mine if variant.row.stage == stage), mine[-1])
    rates = [group[0].sparsity for group in setting.by_sparsity()]
    dash = sum(rate < variant.sparsity for rate in rates) % 4
    return Series(variant.name, palette[variant.label], (), dash=dash)


def _metrics(logs: Iterable[tuple[Series, Sequence[Epoch]]]) -> list[str]:
    """All that were measured, shares of images first."""
    names = dict.fromkeys(name for _, epochs in logs for epoch in epochs for name in epoch.metrics)
    return sorted(names, key=lambda name: not is_share(name))


def _chart(logs: Sequence[tuple[Series, Sequence[Epoch]]], name: str) -> Chart:
    """A metric over epochs, by its own name: shares in percent from 0 on, others as they are."""
    scale, label = (100, "accuracy (%)") if is_share(name) else (1, name.replace("_", " "))
    series = []
    for line, epochs in logs:
        measured = [(epoch.epoch, scale * epoch.metrics[name]) for epoch in epochs if name in epoch.metrics]
        step = max(1, len(measured) // EPOCHS)
        points = [Point(x, y, f"{line.name} epoch {x}: {y:.4g}".strip()) for x, y in measured[step - 1 :: step]]
        series += [replace(line, points=points, marks=len(points) == 1)] if points else []
    places = [point.x for one in series for point in one.points]
    ticks = {x: f"{x:g}" for x in rounded(min(places), max(places), inside=True, whole=True)}
    return Chart(series, "epoch", label, name.replace("_", " "), ticks, (0, None) if is_share(name) else (None, None))
