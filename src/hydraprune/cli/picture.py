"""The picture beside a table, which is worth no failure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydraprune.cli.console import console, printable
from hydraprune.core.errors import MissingError

PICTURE = "robust_accuracy.png"
"""Beside the results of a run or study."""


def draw(table: Sequence[dict[str, Any]], path: Path, title: str = "") -> None:
    """The table as a PNG, or a line that says what it takes."""
    from hydraprune import report

    try:
        report.draw(table, path, title)
    except MissingError as error:
        console.print(printable(str(error)), highlight=False, markup=False, soft_wrap=True)
