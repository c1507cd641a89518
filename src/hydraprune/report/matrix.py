"""Tables whose cells may be shaded by their values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

LEVELS = 8


@dataclass(frozen=True)
class TableCell:
    """A value as text, what it is sorted by (the text by default), its class in the style sheet, and a longer text."""

    text: str
    value: float | None = None
    look: str = ""
    tip: str = ""


@dataclass(frozen=True)
class Matrix:
    """A table.

    Attributes:
        title: above it.
        corner: over the names of the rows.
        columns: names of the columns.
        rows: name and cells of each row.
        caption: what it shows.
        sortable: whether rows may be put in another order.
    """

    title: str
    corner: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[TableCell]]]
    caption: str = ""
    sortable: bool = True


def shaded(
    title: str,
    corner: str,
    columns: Sequence[str],
    rows: Sequence[str],
    cell: Callable[[int, int], TableCell],
    caption: str = "",
) -> Matrix:
    """A matrix whose cells are `cell(row, column)`, by number."""
    body = [(name, [cell(row, column) for column in range(len(columns))]) for row, name in enumerate(rows)]
    return Matrix(title, corner, columns, body, caption, sortable=False)


def rising(value: float, largest: float = 1.0) -> str:
    """The shade of a value from 0 to `largest`."""
    return f"s{round(LEVELS * min(max(value / largest, 0), 1))}" if largest else "s0"


def signed(value: float, largest: float) -> str:
    """The shade of a loss (negative) or a gain."""
    level = round(LEVELS * min(abs(value) / largest, 1)) if largest else 0
    return f"{'n' if value < 0 else 'p'}{level}" if level else "s0"


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * value:+.0f}".replace("-", "−") if round(100 * value) else "0"


def percent(value: float, std: float | None = None) -> str:
    """A share as a percentage, with its spread."""
    return f"{100 * value:.1f}" + (f" ± {100 * std:.1f}" if std is not None else "")
