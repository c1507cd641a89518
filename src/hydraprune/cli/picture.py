"""The picture beside a table, which is worth no failure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydraprune.cli.console import console, printable
from hydraprune.core.errors import MissingError

if TYPE_CHECKING:
    from hydraprune.report import Row


def draw(table: Sequence[Row], path: Path, title: str = "") -> None:
    """The table as a PNG, or a line that says what it takes."""
    from hydraprune import report

    try:
        report.draw(table, path, title)
    except MissingError as error:
        console.print(printable(str(error)), highlight=False, markup=False, soft_wrap=True)
