"""Charts as geometry in a drawing of fixed size; `templates/plot.html` writes them as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """The drawing, and the area of the data in it."""

    width: int = 360
    height: int = 236
    left: int = 50
    right: int = 350
    top: int = 10
    bottom: int = 198


BOX = Box()


@dataclass(frozen=True)
class Point:
    """A value, what hovering over it says, and the ends of its bar."""

    x: float
    y: float
    tip: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """Points that belong together.

    Attributes:
        name: for the legend.
        style: colour and mark, by number; "ink" for what others are compared with, "quiet" for the background.
        points: in order of x.
        line: `line`, `step` (each y holds up to the next x), `area` (such steps, filled), `rule` (a horizontal line
            at the first y) or `none`.
        marks: whether points are drawn; those that are not can be hovered over all the same.
        dash: pattern of the line; 0 is solid.
    """

    name: str
    style: int | str
    points: Sequence[Point]
    line: str = "line"
    marks: bool = True
    dash: int = 0


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

    title: str
    x_label: str
    y_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    drawn: list[Drawn]
    box: Box = BOX


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


def plot(
    series: Sequence[Series],
    *,
    title: str = "",
    x_label: str,
    y_label: str,
    x_ticks: dict[float, str] | None = None,
    y_range: tuple[float | None, float | None] = (None, None),
    log_x: bool = False,
    log_y: bool = False,
) -> Plot:
    """Lay out `series` on common axes.

    Args:
        x_ticks: where the horizontal axis is labelled, and how, all of it shown; round numbers by default.
        y_range: ends of the vertical axis; None takes that of the data.
    """
    xs = [*(p.x for one in series if one.line != "rule" for p in one.points), *(x_ticks or {})] or [0.0, 1.0]
    ys = [y for one in series for p in one.points for y in (p.y, p.low, p.high) if y is not None] or [0.0, 1.0]
    low = y_range[0] if y_range[0] is not None else min(ys)
    high = y_range[1] if y_range[1] is not None else max(ys)
    if high - low < 1e-6 * abs(high) + 1e-9:
        low, high = low - 0.5, high + 0.5
    margin = 1.12 if log_x else 1.0
    x = _Scale(min(xs) / margin, max(xs) * margin, BOX.left + 8, BOX.right - 8, log_x)
    rounds = _powers(low, high) if log_y else rounded(low, high)
    y = _Scale(min(low, rounds[0]), max(high, rounds[-1]), BOX.bottom, BOX.top, log_y)
    labels = x_ticks or {value: _number(value) for value in rounded(min(xs), max(xs), inside=True)}
    return Plot(
        title,
        x_label,
        y_label,
        [Tick(x(value), label) for value, label in labels.items()],
        [Tick(y(value), _number(value)) for value in rounds],
        [_draw(one, x, y) for one in series],
    )


def _draw(series: Series, x: _Scale, y: _Scale) -> Drawn:
    places = [(x(p.x), y(p.y)) for p in series.points]
    marks = [(px, py, p.tip) for (px, py), p in zip(places, series.points, strict=True)]
    bars = [(x(p.x), y(p.high), y(p.low)) for p in series.points if p.low is not None and p.high is not None]
    if series.line == "rule":
        return Drawn(series, f"M{BOX.left} {marks[0][1]}H{BOX.right}", [(BOX.right - 4, *marks[0][1:])], [])
    if series.line == "none" or not places:
        return Drawn(series, "", marks, bars)
    if series.line in ("step", "area"):
        path = "M{} {}".format(*places[0]) + "".join(f"H{px}V{py}" for px, py in places[1:])
        if series.line == "area":
            path = f"M{places[0][0]} {BOX.bottom}L{path[1:]}V{BOX.bottom}Z"
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
