"""Training curves: loss and validation accuracy of each epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydraprune.report.charts import Figure, Palette
from hydraprune.report.experiment import Experiment
from hydraprune.report.plot import Plot, Point, Series, plot, rounded

EPOCHS = 40
"""Points of a line, at most."""
ACCURACIES = ("validation_robust_accuracy", "robust_accuracy", "validation_accuracy", "accuracy")


def training(experiment: Experiment, palette: Palette) -> Figure | None:
    """The first run of an experiment: a chart for each stage, a line for each branch."""
    run = next((run for run in experiment.runs if run.metrics), None)
    if run is None:
        return None
    stages: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for line in run.metrics:
        branch, _, stage = str(line.get("stage")).rpartition("/")
        stages.setdefault(stage, {}).setdefault(branch, []).append(line)
    plots = []
    for keys in (ACCURACIES, ("loss",)):
        for stage, branches in stages.items():
            known = {key for lines in branches.values() for line in lines for key in line}
            key = next((key for key in keys if key in known), None)
            if key is not None:
                plots.append(_chart(stage, branches, key, palette))
    return Figure(experiment.heading, plots)


def _chart(stage: str, branches: dict[str, list[dict[str, Any]]], key: str, palette: Palette) -> Plot:
    rates = sorted({branch.rpartition("-")[2] for branch in branches})
    scale = 1 if key == "loss" else 100
    series = [
        _line(branch, lines, key, scale, palette, rates.index(branch.rpartition("-")[2]) % 4)
        for branch, lines in branches.items()
    ]
    series = [one for one in series if one.points]
    epochs = [point.x for one in series for point in one.points] or [1.0]
    return plot(
        series,
        title=f"{stage}: {key.replace('_', ' ')}",
        x_label="epoch",
        y_label="loss" if key == "loss" else "accuracy (%)",
        x_ticks={x: f"{x:g}" for x in rounded(min(epochs), max(epochs), inside=True, whole=True)},
        y_range=(None, None) if key == "loss" else (0, None),
    )


def _line(branch: str, lines: Sequence[dict[str, Any]], key: str, scale: float, palette: Palette, dash: int) -> Series:
    measured = [line for line in lines if isinstance(line.get(key), int | float)]
    thinned = [line for number, line in enumerate(measured, start=1) if number % max(1, len(measured) // EPOCHS) == 0]
    pruner, _, sparsity = branch.rpartition("-")
    name = f"{pruner} {100 * float(sparsity):.3g} %" if _is_number(sparsity) else branch
    points = [
        Point(line["epoch"], scale * line[key], f"{name} epoch {line['epoch']}: {scale * line[key]:.4g}".strip())
        for line in thinned
    ]
    return Series(name, palette[pruner] if branch else "ink", points, marks=False, dash=dash)


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()
