"""Results of one or several runs as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydraprune.core.extras import extra
from hydraprune.core.files import write_atomically
from hydraprune.report.chart import STYLES, Chart, Palette, Series, Style
from hydraprune.report.charts import by_method, over_sparsity
from hydraprune.report.summary import Row, columns

PANELS = 2
"""Attacks or certificates that are shown, at most, beside clean accuracy."""
INK, GRID = "#1b1e23", "#dddddd"
REFERENCE = Style(INK, GRID, "X")
"""Of points that others are compared with."""


def pictured(table: Sequence[Row]) -> list[Chart]:
    """Charts for the first two attacks or certificates and for clean accuracy.

    Methods are lines over sparsity as on the page. More than there are colours are rows, the best on top.
    """
    names = [*[name for name in columns(table) if name != "clean"][:PANELS], "clean"]
    methods = list(dict.fromkeys(row.pruner for row in table if not row.dense))
    if len(methods) <= len(STYLES):
        palette = Palette(methods)
        return [over_sparsity(table, name, palette) for name in names]
    methods.sort(key=lambda method: _mean([row for row in table if row.pruner == method], names[0]))
    return [by_method(table, name, methods) for name in names]


def _mean(rows: Sequence[Row], name: str) -> float:
    values = [row.figures[name].mean for row in rows if name in row.figures]
    return sum(values) / max(1, len(values))


def draw(table: Sequence[Row], path: Path, title: str = "") -> None:
    """Write a PNG of the charts of `pictured`.

    Raises:
        MissingError: without matplotlib.
    """
    paint(pictured(table), path, title)


def paint(charts: Sequence[Chart], path: Path, title: str = "") -> None:
    """Write a PNG of charts side by side, with the legend of the first.

    Raises:
        MissingError: without matplotlib.
    """
    with extra("report", "the picture"):
        import matplotlib as mpl
        from matplotlib.figure import Figure

    sideways, places = charts[0].sideways, len(charts[0].x_ticks or ())
    size = (4.6 * len(charts), 1.2 + 0.24 * places if sideways else 3.8)
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=size, layout="constrained")
        for axes, chart in zip(figure.subplots(1, len(charts), sharey=sideways, squeeze=False)[0], charts, strict=True):
            for series in chart.series:
                _plot(axes, series, chart.sideways)
            _label(axes, chart)
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
        if title:
            figure.suptitle(title)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=130)
    write_atomically(path, picture.getvalue())


def _plot(axes: Any, series: Series, sideways: bool) -> None:
    points = series.points
    if series.line == "rule":
        across = axes.axvline if sideways else axes.axhline
        across(points[0].y, color=INK, ls=":", lw=1.2, label=series.name)
        return
    style = REFERENCE if isinstance(series.style, str) else STYLES[series.style % len(STYLES)]
    look = {"color": style.light, "marker": style.mark, "capsize": 3, "label": series.name}
    ends = [(p.y if p.low is None else p.low, p.y if p.high is None else p.high) for p in points]
    bars = [[p.y - low for p, (low, _) in zip(points, ends, strict=True)],
            [high - p.y for p, (_, high) in zip(points, ends, strict=True)]]  # fmt: skip
    xs, ys = [point.x for point in points], [point.y for point in points]
    if sideways:
        axes.errorbar(ys, xs, xerr=bars, ls="none", lw=1.2, **look)
    else:
        axes.errorbar(xs, ys, bars, ls="none" if series.line == "none" else "-", lw=1.8, **look)


def _label(axes: Any, chart: Chart) -> None:
    axes.set_title(chart.title, fontsize=10, wrap=True)
    along, other = (axes.yaxis, axes.xaxis) if chart.sideways else (axes.xaxis, axes.yaxis)
    along.set_label_text(chart.x_label)
    other.set_label_text(chart.y_label)
    if chart.log_x and chart.x_ticks:
        axes.set_xscale("log")
    if chart.x_ticks:
        along.set_ticks(list(chart.x_ticks), list(chart.x_ticks.values()))
        axes.minorticks_off()
    if chart.sideways:
        axes.set_ylim(-0.7, len(chart.x_ticks or ()) - 0.3)
    (axes.set_xlim if chart.sideways else axes.set_ylim)(*chart.y_range)
    axes.grid(axis="both" if chart.sideways else "y", color=GRID, lw=0.7)
