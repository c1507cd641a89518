"""One cell of a study: where it stands, and what brings it to its end."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console

from hydraprune.core.errors import BusyError, CheckpointError, HydrapruneError, SpecError, TrainingError
from hydraprune.core.files import write_json
from hydraprune.recipes.runner import run
from hydraprune.recipes.schema import Recipe
from hydraprune.runs.cells import Done, Failure, read_end
from hydraprune.runs.entries import Told
from hydraprune.runs.files import DONE, FAILED, SHARED, finished
from hydraprune.runs.lock import holder, own
from hydraprune.study.schema import Cell
from hydraprune.study.shared import adopt, key, trunk

State = Literal["done", "failed", "elsewhere", "open"]
Call = Callable[[dict[str, Any], str], None]


class Outcome(NamedTuple):
    """What came of an attempt at a cell.

    Attributes:
        state: `done`; `failed`; `elsewhere` if another process is at it; `open` while another is at what it shares.
        note: what the user should read.
        spoiled: whether the process has failed in it, so that another should do the next one.
    """

    state: State
    note: str = ""
    spoiled: bool = False


def standing(cells: list[Cell], out: Path, told: Told = lambda why: None) -> dict[str, State]:
    """Cell -> `done`, `failed` or `open`, by what its folder holds; `told` gets a line about each damaged end."""
    for damage in filter(None, (_end(out / cell.name)[1] for cell in cells)):
        told(damage)
    return {cell.name: _standing(cell, out / cell.name) for cell in cells}


def known(cell: Cell, out: Path, began: float) -> State | None:
    """`done`, or `failed` if that has happened since `began`; None if there is something to do."""
    folder = out / cell.name
    if _standing(cell, folder) == "done":
        return "done"
    return None if _failure(folder, began) is None else "failed"


def settle(cell: Cell, out: Path, began: float, call: Call) -> Outcome:
    """Bring a cell to its end as the only one at it: the stages that it shares with others, then its own.

    Args:
        cell: of the study in `out`.
        out: its folder.
        began: when the study was started, in seconds since 1970; what has failed since is not tried again.
        call: runs a recipe into a folder.
    """
    try:
        with own(out / cell.name):
            return _settled(cell, out, began, call)
    except BusyError:
        return Outcome("elsewhere")


def bury(cell: Cell, out: Path, process: int, why: str) -> Outcome:
    """Write down that a process of this machine died at a cell, or at what it shares with others."""
    error, first = TrainingError(why), trunk(cell.recipe)
    shared = None if first is None else out / SHARED / key(first)
    try:
        if shared is not None and (left := holder(shared)) and left.near and left.pid == process:
            with own(shared):
                _note(shared, error)
        with own(out / cell.name):
            return _failed(cell, out, error)
    except BusyError:  # another process has taken over
        return Outcome("elsewhere")


def run_plain(recipe: dict[str, Any], out: str, console: Console | None = None) -> None:
    """Run a recipe, given as plain settings, into a folder; without a word if it was trained before."""
    parsed = Recipe.parse(recipe, out)
    trained = all(finished(Path(out) / stage.name) for stage in parsed.stages if stage.trains)
    run(parsed, out, None if trained else console)


def _settled(cell: Cell, out: Path, began: float, call: Call) -> Outcome:
    folder, start, (_, damage) = out / cell.name, time.perf_counter(), _end(out / cell.name)
    if (state := known(cell, out, began)) is not None:  # another process was quicker
        return Outcome(state)
    first = trunk(cell.recipe)
    try:
        if first is not None:
            shared = out / SHARED / key(first)
            if (failure := _train(first, shared, began, call)) is not None:
                return _failed(cell, out, TrainingError(failure))
            adopt(first, shared, folder)
        call(cell.recipe.plain(), str(folder))
    except _Awaited:
        return Outcome("open")
    except Exception as error:
        return _failed(cell, out, error)._replace(spoiled=True)
    seconds = time.perf_counter() - start
    (folder / FAILED).unlink(missing_ok=True)
    settings = cell.recipe.plain() | {"trainer": None}
    write_json(folder / DONE, {"labels": cell.labels, "seconds": seconds, "recipe": settings})
    again = f", again: {damage}" if damage else ""
    return Outcome("done", f"{cell.name}: done in {seconds:.0f} s{again}")


class _Awaited(Exception):
    """Another process is at the stages that a cell shares."""


def _train(first: Recipe, shared: Path, began: float, call: Call) -> str | None:
    """Train what cells share, once; why not, if that has failed since `began`."""
    try:
        with own(shared):
            if (failure := _failure(shared, began)) is not None:
                return failure
            try:
                call(first.plain(), str(shared))
            except Exception as error:
                _note(shared, error)
                raise
            (shared / FAILED).unlink(missing_ok=True)
            return None
    except BusyError:
        raise _Awaited from None


def _standing(cell: Cell, folder: Path) -> State:
    done, _ = _end(folder)
    if done is not None and _is_of(cell, done.recipe):
        return "done"
    return "failed" if (folder / FAILED).exists() else "open"


def _end(folder: Path) -> tuple[Done | None, str]:
    """How a cell ended; what is to be told of one that cannot be read: it is run again, and finds what is finished."""
    try:
        return read_end(Done, folder / DONE), ""
    except CheckpointError as error:
        return None, str(error)


def _is_of(cell: Cell, settings: dict[str, Any]) -> bool:
    """Whether a cell with these settings is `cell`, on whatever machine; what they lack is at its default."""
    try:
        found = Recipe.parse(settings | {"trainer": cell.recipe.trainer.plain()}, cell.name)
    except SpecError:  # of another version, which knew other settings
        return False
    return (found.training(), found.stages) == (cell.recipe.training(), cell.recipe.stages)


def _failure(folder: Path, began: float) -> str | None:
    """What has failed in the folder since `began`."""
    try:
        failure = read_end(Failure, folder / FAILED)
    except CheckpointError:  # of an earlier start: it is tried again
        failure = None
    return failure.error if failure is not None and failure.time >= began else None


def _failed(cell: Cell, out: Path, error: Exception) -> Outcome:
    shown = _note(out / cell.name, error, labels=cell.labels)
    return Outcome("failed", f"{cell.name}: failed: {shown}")


def _note(folder: Path, error: Exception, **more: Any) -> str:
    """Write a failure down; returns how it is shown."""
    shown = str(error) if isinstance(error, HydrapruneError) else f"{type(error).__name__}: {error}"
    trace = "".join(traceback.format_exception(error))
    write_json(folder / FAILED, {"error": shown, "trace": trace, "time": time.time()} | more)
    return shown
