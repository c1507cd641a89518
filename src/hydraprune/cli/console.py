"""Where commands write."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from hydraprune.core.errors import MissingError

if TYPE_CHECKING:
    from hydraprune.report import Row

# A file or a pipe has no width; lines are not to be broken there.
console = Console(width=None if sys.stdout.isatty() else 200)


def printable(text: str) -> str:
    """One line, without the control characters by which a stranger's file could write elsewhere on a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def tell(text: str) -> None:
    """Print a line as it stands, whatever file its words come from."""
    console.print(printable(text), highlight=False, markup=False, soft_wrap=True)


def draw(table: Sequence[Row], path: Path, title: str = "") -> None:
    """The table as a PNG, or a line that says what it takes."""
    from hydraprune import report

    pictured(lambda: report.draw(table, path, title))


def pictured(paint: Callable[[], None]) -> None:
    """What `paint` draws, or a line that says what it takes: a picture beside a table is worth no failure."""
    try:
        paint()
    except MissingError as error:
        tell(str(error))


def first() -> bool:
    """Whether this process is the first of those that torchrun, Slurm or Lightning Fabric has started, or alone."""
    ranks = [os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ]
    return not ranks or int(ranks[0]) == 0
