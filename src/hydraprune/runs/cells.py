"""How a cell of a study ended: `cell.json` or `failure.json` in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from hydraprune.core.files import read_json
from hydraprune.core.spec import Real
from hydraprune.runs.entries import Entry, S, parsed

AGAIN = "remove it, and the same study runs the cell again, from what is finished of it"


class Done(Entry):
    """A finished cell.

    Args:
        labels: axis -> label.
        seconds: wall time.
        recipe: its settings, but for the machine.
    """

    labels: dict[str, str]
    seconds: Annotated[Real, Field(ge=0)]
    recipe: dict[str, Any]


class Failure(Entry):
    """A cell that failed.

    Args:
        error: in one line.
        trace: the traceback.
        time: when, in seconds since 1970.
        labels: axis -> label.
    """

    error: str
    trace: str = ""
    time: Annotated[Real, Field(ge=0)]
    labels: dict[str, str] = {}


def read_end(kind: type[S], file: Path) -> S | None:
    """What such a file says; None if there is none.

    Raises:
        CheckpointError: if it is damaged.
    """
    return parsed(kind, read_json(file, AGAIN), str(file), AGAIN) if file.exists() else None
