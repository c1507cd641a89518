"""Charts as geometry in a drawing of fixed size; `templates/parts.html` writes them as SVG."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hydraprune.report.chart import Chart, Series


@dataclass(frozen=True)
class Frame:
    """The drawing, and the area of the data in it."""

    width: int = 360
    height: int = 236
    left: int = 50
    right: int = 350
    top: int = 10
    bottom: int = 198


FRAME = Frame()


@dataclass(frozen=True)
class Tick:
    """A place on an axis, in units of the drawing."""

    at: float
    label: str


@dataclass(frozen=True)
class Drawn:
    """A series in units of the drawing: `marks` are (x, y, tip), `bars` are (x, top, bottom)."""

    series: Series
    path: str
    marks: list[tuple[float, float, str]]
    bars: list[tuple[float, float, float]]


@dataclass(frozen=True)
class Plot:
    """A chart, ready to be written down."""

    chart: Chart
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    drawn: list[Drawn]
    frame: Frame = FRAME


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self._unit(self.low), self._unit(self.high)
        share = (self._unit(value) - low) / (high - low) if high > low else 0.5
        return round(self.start + min(max(share, 0.0), 1.0) * (self.end - self.start), 1)

    def _unit(self, value: float) -> float:
        return math.log10(max(value, 1e-12)) if self.log else value


def laid_out(chart: Chart) -> Plot:
    """Where the ticks and points of a chart lie."""
    drawn, ticks = chart.series, chart.x_ticks
    xs = [*(p.x for one in drawn if one.line != "rule" for p in one.points), *(ticks or {})] or [0.0, 1.0]
    ys = [y for one in drawn for p in one.points for y in (p.y, p.low, p.high) if y is not None] or [0.0, 1.0]
    ends = zip(chart.y_range, (min(ys), max(ys)), strict=True)
    low, high = (found if asked is None else asked for asked, found in ends)
    if high - low < 1e-6 * abs(high) + 1e-9:
        low, high = low - 0.5, high + 0.5
    margin = 1.12 if chart.log_x else 1.0
    x = _Scale(min(xs) / margin, max(xs) * margin, FRAME.left + 8, FRAME.right - 8, chart.log_x)
    rounds = _powers(low, high) if chart.log_y else rounded(low, high)
    y = _Scale(min(low, rounds[0]), max(high, rounds[-1]), FRAME.bottom, FRAME.top, chart.log_y)
    labels = ticks or {value: _number(value) for value in rounded(min(xs), max(xs), inside=True)}
    return Plot(
        chart,
        [Tick(x(value), label) for value, label in labels.items()],
        [Tick(y(value), _number(value)) for value in rounds],
        [_draw(one, x, y) for one in drawn],
    )


def _draw(series: Series, x: _Scale, y: _Scale) -> Drawn:
    places = [(x(p.x), y(p.y)) for p in series.points]
    marks = [(px, py, p.tip) for (px, py), p in zip(places, series.points, strict=True)]
    bars = [(x(p.x), y(p.high), y(p.low)) for p in series.points if p.low is not None and p.high is not None]
    if series.line == "rule":
        return Drawn(series, f"M{FRAME.left} {marks[0][1]}H{FRAME.right}", [(FRAME.right - 4, *marks[0][1:])], [])
    if series.line == "none" or not places:
        return Drawn(series, "", marks, bars)
    if series.line in ("step", "area"):
        path = "M{} {}".format(*places[0]) + "".join(f"H{px}V{py}" for px, py in places[1:])
        if series.line == "area":
            path = f"M{places[0][0]} {FRAME.bottom}L{path[1:]}V{FRAME.bottom}Z"
        return Drawn(series, path, marks, bars)
    return Drawn(series, "M" + "L".join(f"{px} {py}" for px, py in places), marks, bars)


def rounded(low: float, high: float, *, inside: bool = False, whole: bool = False) -> list[float]:
    """Three to six round numbers around (or `inside`) the range, or `whole` ones."""
    span = max(high - low, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if span / (power * factor) <= 5)
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    if inside:
        first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
    return [round(step * number, 10) for number in range(first, last + 1)] or [low]


def _powers(low: float, high: float) -> list[float]:
    """Powers of ten from `low` on to above `high`, at most six."""
    first, last = math.ceil(math.log10(low)), math.ceil(math.log10(high))
    return [10.0**power for power in range(first, last + 1, max(1, (last - first) // 4))]


def _number(value: float) -> str:
    return f"{value:g}".replace("-", "−") if abs(value) < 1e4 else f"{value:.0e}".replace("e+0", "e")
