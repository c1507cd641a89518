"""What a chart shows, however it is drawn: `plot` lays it out for the page, `picture` draws it as a PNG."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Style:
    """A colour on a light and on a dark ground, and a mark as matplotlib calls it; `templates/page.html` draws them."""

    light: str
    dark: str
    mark: str


# Colours that the colour-blind can tell apart (Okabe and Ito), and a mark of its own for each.
STYLES = (
    Style("#0072b2", "#4aa8e0", "o"),
    Style("#d55e00", "#f0894a", "s"),
    Style("#7a7a7a", "#a8a8a8", "D"),
    Style("#009e73", "#2fc49a", "^"),
    Style("#b5579a", "#dd8fc4", "v"),
    Style("#b98a00", "#f0c04a", "P"),
    Style("#3d8fc4", "#9fd4f5", "<"),
    Style("#6b4fa0", "#b7a0e8", ">"),
    Style("#8c510a", "#d9a066", "*"),
)
KNOWN: dict[str, int | str] = {"dense": "ink", "hydra": 0, "magnitude": 1, "random": 2}


class Palette:
    """A style for every label, by its number, the same in all charts."""

    def __init__(self, labels: Iterable[str]) -> None:
        others = [label for label in dict.fromkeys(labels) if label not in KNOWN]
        free = len(STYLES) - 3
        self._styles = KNOWN | {label: 3 + number % free for number, label in enumerate(others)}

    def __getitem__(self, label: str) -> int | str:
        return self._styles.get(label, "ink")


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
        line: `line`, `step` (each y holds up to the next x), `area` (such steps, filled), `rule` (a line across the
            chart at the first y) or `none`.
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
class Chart:
    """Series on common axes.

    Attributes:
        series: the last lies on top.
        x_label, y_label: of the axes.
        title: above it.
        x_ticks: where the axis is labelled, and how, all of it shown; round numbers by default.
        y_range: ends of the other axis; None takes that of the data.
        log_x, log_y: whether an axis is spaced by ratio.
        sideways: whether x runs upwards and y to the right; pictures only.
    """

    series: Sequence[Series]
    x_label: str
    y_label: str
    title: str = ""
    x_ticks: dict[float, str] | None = None
    y_range: tuple[float | None, float | None] = (None, None)
    log_x: bool = False
    log_y: bool = False
    sideways: bool = False


@dataclass(frozen=True)
class Panels:
    """Charts that share a legend.

    Attributes:
        title: over all of them.
        charts: side by side.
        caption: what they show, and how to read them.
    """

    title: str
    charts: list[Chart]
    caption: str = ""

    @property
    def legend(self) -> list[Series]:
        """One series of each name."""
        found: dict[str, Series] = {}
        for one in (one for chart in self.charts for one in chart.series if one.name):
            found.setdefault(one.name, one)
        return list(found.values())
