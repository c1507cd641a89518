"""What was measured, as charts: against sparsity, radius and epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hydraprune.report.contents import Certificate, Curve
from hydraprune.report.experiment import PROVED, Entry, Setting, Spread, interval, titled
from hydraprune.report.folder import Network
from hydraprune.report.matrix import percent
from hydraprune.report.plot import Plot, Point, Series, plot

KNOWN: dict[str, int | str] = {"dense": "ink", "hydra": 0, "magnitude": 1, "random": 2}
STYLES = 9
CURVES = "curves.json"


@dataclass(frozen=True)
class Figure:
    """Charts that share a legend.

    Attributes:
        title: over all of them.
        plots: the charts.
        caption: what they show, and how to read them.
    """

    title: str
    plots: list[Plot]
    caption: str = ""

    @property
    def legend(self) -> list[Series]:
        """One series of each name."""
        found: dict[str, Series] = {}
        for drawn in (drawn for one in self.plots for drawn in one.drawn if drawn.series.name):
            found.setdefault(drawn.series.name, drawn.series)
        return list(found.values())


class Palette:
    """A colour and a mark for every label, the same all over the page."""

    def __init__(self, labels: Iterable[str]) -> None:
        others = [label for label in dict.fromkeys(labels) if label not in KNOWN]
        self._styles = KNOWN | {label: 3 + number % (STYLES - 3) for number, label in enumerate(others)}

    def __getitem__(self, label: str) -> int | str:
        return self._styles.get(label, "ink")


def spread_of(figure: dict[str, Any]) -> str:
    """How sure a figure of a row is: its seeds, or the interval that the number of images allows."""
    if figure["std"] is not None:
        return f"seeds {', '.join(percent(value) for value in figure['values'])}; {figure['samples']:,} images"
    low, high = interval(figure["mean"], figure["samples"])
    return f"95 % interval {percent(low)} to {percent(high)}, {figure['samples']:,} images"


def against_sparsity(setting: Setting, palette: Palette) -> Figure | None:
    """Accuracy of every method, a chart for each attack and for clean accuracy."""
    if not setting.pruned:
        return None
    names = [name for name in setting.columns() if name != "clean" and not name.startswith("certified ")] + ["clean"]
    groups = setting.by_sparsity()
    ticks = {_ratio(group[0]): f"{100 * group[0].sparsity:.3g}" for group in groups}
    plots = []
    for name in names:
        series = [
            Series(
                label,
                palette[label],
                [_measured(e, name) for e in setting.pruned if e.label == label and name in e.row["figures"]],
            )
            for label in dict.fromkeys(entry.label for entry in setting.pruned)
        ]
        if setting.dense is not None and name in setting.dense.row["figures"]:
            series.append(Series("dense", "ink", [_measured(setting.dense, name)], line="rule", dash=2))
        plots.append(
            plot(
                [one for one in series if one.points],
                title=name if name == "clean" or name.startswith(PROVED) else f"under {name}",
                x_label="weights removed (%)",
                y_label="accuracy (%)",
                x_ticks=ticks,
                y_range=(0, None),
                log_x=True,
            )
        )
    caption = (
        "Bars: one standard deviation over seeds; for a single run, the 95 % interval that the number of test images "
        "allows. The horizontal axis is spaced by compression."
    )
    return Figure(setting.heading, plots, caption)


def _ratio(entry: Entry) -> float:
    return float(entry.row["total"] / max(entry.row["kept"], 1))


def _measured(entry: Entry, name: str) -> Point:
    return measured_at(_ratio(entry), f"{entry.name}, {name}", entry.row["figures"][name])


def measured_at(x: float, what: str, figure: dict[str, Any]) -> Point:
    """A figure of a row with its bar: the seeds' standard deviation, or the interval of a single run."""
    mean, std = figure["mean"], figure["std"]
    low, high = (mean - std, mean + std) if std is not None else interval(mean, figure["samples"])
    tip = f"{what}: {percent(mean, std)} % ({spread_of(figure)})"
    return Point(x, 100 * mean, tip, 100 * max(low, 0), 100 * min(high, 1))


def by_sparsity(setting: Setting, series: Callable[[Entry], list[Series]], x_label: str) -> list[Plot]:
    """A chart for each sparsity, with the dense network in all of them, of the `series` of each network."""
    dense = [setting.dense] if setting.dense is not None else []
    plots = []
    for group in setting.by_sparsity() or [[]]:
        drawn = [(entry, one) for entry in [*group, *dense] for one in series(entry) if one.points]
        if not any(entry in group or not group for entry, _ in drawn):
            continue
        title = f"{100 * group[0].sparsity:.3g} % of weights removed" if group else "dense"
        lines = [one for _, one in drawn]
        plots.append(plot(lines, title=title, x_label=x_label, y_label="accuracy (%)", y_range=(0, None)))
    return plots


def curve(entry: Entry, values: dict[float, Spread], palette: Palette, line: str = "line") -> Series:
    """x -> y of a network as a line, or in steps."""
    points = []
    for x, y in values.items():
        ends = (
            (100 * (y.mean - y.std), 100 * (y.mean + y.std)) if y.std is not None and line == "line" else (None, None)
        )
        points.append(Point(x, 100 * y.mean, f"{entry.name}: {percent(y.mean, y.std)} % at {x:.4g}", *ends))
    return Series(entry.label, palette[entry.label], points, line=line, marks=len(points) < 12, dash=2 * entry.dense)


def security(setting: Setting, palette: Palette) -> list[Figure]:
    """Accuracy against the radius, for each attack that was measured so."""
    names = [name for entry in setting.entries for network in entry.seeds for name in security_curves(network)]
    return [_attacked(setting, palette, name) for name in dict.fromkeys(names)]


def _attacked(setting: Setting, palette: Palette, name: str) -> Figure:
    def series(entry: Entry) -> list[Series]:
        return [curve(entry, entry.over_seeds(lambda network: security_curves(network).get(name, {})), palette)]

    plots = by_sparsity(setting, series, "radius of the attack")
    caption = "The share of test images that are still classified correctly when the attack may go this far."
    return Figure(titled(setting.heading, name), plots, caption)


def security_curves(network: Network, file: str = CURVES) -> dict[str, dict[float, float]]:
    """Minimum-norm attack -> radius -> accuracy, of a file beside the checkpoint or in a folder there."""
    found = network.named(Curve, file, "security")
    return {name: dict(zip(curve.eps, curve.accuracy, strict=True)) for name, curve in found.items()}


def certified(setting: Setting, palette: Palette) -> list[Figure]:
    """Certified accuracy of the smoothed networks against the radius, for each file of certificates."""
    radii = {
        id(network): {name: np.sort([_radius(one) for one in found]) for name, found in network.certificates().items()}
        for entry in setting.entries
        for network in entry.seeds
    }
    names = dict.fromkeys(name for found in radii.values() for name in found)
    return [_certified(setting, palette, name, {i: f[name] for i, f in radii.items() if name in f}) for name in names]


def _certified(setting: Setting, palette: Palette, name: str, radii: dict[int, np.ndarray]) -> Figure:
    grid = np.linspace(0, max(0.0, *(float(found[-1]) for found in radii.values())), 49)

    def read(network: Network) -> dict[float, float]:
        found = radii.get(id(network))
        if found is None:
            return {}
        shares = 1 - np.searchsorted(found, grid) / len(found)
        return dict(zip(grid.tolist(), shares.tolist(), strict=True))

    def series(entry: Entry) -> list[Series]:
        return [curve(entry, entry.over_seeds(read), palette, "step")]

    plots = by_sparsity(setting, series, "certified ℓ2 radius")
    caption = (
        "Randomized smoothing: the share of images whose class cannot change within that ℓ2 radius; each certificate "
        "holds with the probability that its settings state."
    )
    return Figure(titled(setting.heading, name.removeprefix("certified-")), plots, caption)


def _radius(found: Certificate) -> float:
    """The certified radius of an image; below 0 if its class is wrong."""
    return found.radius if found.prediction == found.label else -1.0
