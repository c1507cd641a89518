"""What was measured, as charts: against sparsity, radius and epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from hydraprune.report.chart import Chart, Palette, Panels, Point, Series
from hydraprune.report.experiment import PROVED, Setting, Variant, titled
from hydraprune.report.spread import Spread
from hydraprune.report.summary import Row
from hydraprune.runs.contents import CertifiedLine, Curve
from hydraprune.runs.files import CURVES
from hydraprune.runs.folder import Network

ACCURACY = "accuracy (%)"
BARS = (
    "Bars: one standard deviation over seeds; for a single run, the 95 % interval that the number of test images "
    "allows. The horizontal axis is spaced by compression."
)


def against_sparsity(setting: Setting, palette: Palette) -> Panels | None:
    """Accuracy of every method, a chart for each attack and for clean accuracy."""
    if not setting.pruned:
        return None
    names = [name for name in setting.columns() if name != "clean" and not name.startswith("certified ")] + ["clean"]
    rows = [variant.row for variant in setting.variants]
    return Panels(setting.heading, [over_sparsity(rows, name, palette) for name in names], BARS)


def over_sparsity(table: Sequence[Row], name: str, palette: Palette) -> Chart:
    """One figure of all networks: a line for each method over sparsity, spaced by compression."""
    lines = _grouped(table, name, lambda row: row.pruner, lambda row: row.smaller)
    series = [Series(label, palette[label], points) for label, points in lines.items()]
    ticks = {row.smaller: row.removed for row in table if not row.dense}
    dense = _reference(table, name)
    return Chart([*series, *dense], "weights removed (%)", ACCURACY, _title(name), ticks, (0, None), log_x=True)


def by_method(table: Sequence[Row], name: str, methods: Sequence[str]) -> Chart:
    """One figure of all networks: a row for each of the `methods`, from below, with a dot for each sparsity."""
    dots = _grouped(table, name, lambda row: f"{row.removed} %", lambda row: methods.index(row.pruner))
    series = [Series(removed, style, points, line="none") for style, (removed, points) in enumerate(dots.items())]
    ticks = {float(place): method for place, method in enumerate(methods)}
    dense = _reference(table, name)
    return Chart([*series, *dense], "", ACCURACY, _title(name), ticks, (0, None), sideways=True)


def _grouped(
    table: Sequence[Row], name: str, label: Callable[[Row], str], x: Callable[[Row], float]
) -> dict[str, list[Point]]:
    """The points of the pruned networks by label, from the lowest sparsity on."""
    found: dict[str, list[Point]] = {}
    for row in sorted(table, key=lambda row: row.sparsity):
        if not row.dense and name in row.figures:
            found.setdefault(label(row), []).append(measured_at(x(row), row, name))
    return found


def _reference(table: Sequence[Row], name: str) -> list[Series]:
    """The first dense network, if there is one, as a line across the chart."""
    dense = [measured_at(1.0, row, name) for row in table if row.dense and name in row.figures][:1]
    return [Series("dense", "ink", dense, line="rule", dash=2)] * len(dense)


def _title(name: str) -> str:
    return name if name == "clean" or name.startswith(PROVED) else f"under {name}"


def measured_at(x: float, row: Row, name: str, where: str = "") -> Point:
    """A figure of a row with its bar: the seeds' standard deviation, or the interval of a single run."""
    figure = row.figures[name]
    low, high = figure.ends
    tip = f"{row.name}, {name}{where}: {figure.percent} % ({figure.words})"
    return Point(x, 100 * figure.mean, tip, 100 * low, 100 * high)


def by_sparsity(setting: Setting, series: Mapping[Variant, list[Series]], x_label: str) -> list[Chart]:
    """A chart for each sparsity, with the dense network in all of them, of the `series` of each network."""
    dense = [setting.dense] if setting.dense is not None else []
    charts = []
    for group in setting.by_sparsity() or [[]]:
        drawn = [(variant, one) for variant in [*group, *dense] for one in series.get(variant, []) if one.points]
        if not any(variant in group or not group for variant, _ in drawn):
            continue
        title = f"{100 * group[0].sparsity:.3g} % of weights removed" if group else "dense"
        charts.append(Chart([one for _, one in drawn], x_label, ACCURACY, title, y_range=(0, None)))
    return charts


def curve(variant: Variant, seeds: Iterable[dict[float, float]], palette: Palette, line: str = "line") -> Series:
    """The curves, x -> y, of a network's seeds as a line, or in steps, at the x that all of them have."""
    curves = [found for found in seeds if found]
    shared = [x for x in curves[0] if all(x in found for found in curves)] if curves else []
    points = []
    for x in sorted(shared):
        y = Spread.of([found[x] for found in curves])
        std = y.std if line == "line" else None
        ends = (None, None) if std is None else (100 * (y.mean - std), 100 * (y.mean + std))
        points.append(Point(x, 100 * y.mean, f"{variant.name}: {y.percent} % at {x:.4g}", *ends))
    marks, dash = len(points) < 12, 2 * variant.dense
    return Series(variant.label, palette[variant.label], points, line=line, marks=marks, dash=dash)


def security(setting: Setting, palette: Palette) -> list[Panels]:
    """Accuracy against the radius, for each attack that was measured so."""
    caption = "The share of test images that are still classified correctly when the attack may go this far."
    seeds = {variant: [security_curves(network) for network in variant.seeds] for variant in setting.variants}
    figures = []
    for name in dict.fromkeys(name for found in seeds.values() for curves in found for name in curves):
        series = {v: [curve(v, [curves.get(name, {}) for curves in found], palette)] for v, found in seeds.items()}
        charts = by_sparsity(setting, series, "radius of the attack")
        figures.append(Panels(titled(setting.heading, name), charts, caption))
    return figures


def security_curves(network: Network, file: str = CURVES) -> dict[str, dict[float, float]]:
    """Minimum-norm attack -> radius -> accuracy, of a file beside the checkpoint or in a folder there."""
    found = network.named(Curve, file, "security")
    return {name: dict(zip(curve.eps, curve.accuracy, strict=True)) for name, curve in found.items()}


def certified(setting: Setting, palette: Palette) -> list[Panels]:
    """Certified accuracy of the smoothed networks against the radius, for each file of certificates."""
    radii = {
        network: {name: np.sort([_radius(one) for one in found]) for name, found in network.certificates().items()}
        for variant in setting.variants
        for network in variant.seeds
    }
    names = dict.fromkeys(name for found in radii.values() for name in found)
    return [_certified(setting, palette, name, {n: f[name] for n, f in radii.items() if name in f}) for name in names]


def _certified(setting: Setting, palette: Palette, name: str, radii: dict[Network, np.ndarray]) -> Panels:
    grid = np.linspace(0, max(0.0, *(float(found[-1]) for found in radii.values())), 49)
    series = {}
    for variant in setting.variants:
        found = [radii[network] for network in variant.seeds if network in radii]
        shares = [1 - np.searchsorted(each, grid) / len(each) for each in found]
        curves = [dict(zip(grid.tolist(), share.tolist(), strict=True)) for share in shares]
        series[variant] = [curve(variant, curves, palette, "step")]
    charts = by_sparsity(setting, series, "certified ℓ2 radius")
    caption = (
        "Randomized smoothing: the share of images whose class cannot change within that ℓ2 radius; each certificate "
        "holds with the probability that its settings state."
    )
    return Panels(titled(setting.heading, name.removeprefix("certified-")), charts, caption)


def _radius(found: CertifiedLine) -> float:
    """The certified radius of an image; below 0 if its class is wrong."""
    return found.radius if found.prediction == found.label else -1.0
