"""Runs the cells of a study, beside other processes that do the same."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import yaml
from rich.console import Console

from hydraprune.core.errors import CheckpointError, HydrapruneError, SpecError
from hydraprune.core.files import output_folder, write_atomically, write_json
from hydraprune.recipes.library import read_settings
from hydraprune.recipes.runner import refuse_another, run
from hydraprune.recipes.schema import Recipe
from hydraprune.runs.cells import DONE, FAILED, read_done, read_failure
from hydraprune.study.claims import claim
from hydraprune.study.schema import Cell, Study, resolved
from hydraprune.study.shared import adopt, key, trunk

STUDY, SHARED, CLAIMS = "study.yaml", "shared", ".claims"
POLL = 1.0
"""Seconds between looks at what others are doing."""
State = Literal["done", "failed", "elsewhere", "open"]
Call = Callable[[dict[str, Any], str], None]


def run_study(
    study: Study, out: Path | str, console: Console | None = None, *, jobs: int = 1, call: Call | None = None
) -> dict[str, State]:
    """Run every cell of `study` into the folder `out/CELL`; what is finished is skipped, what failed is tried again.

    Stages before the first pruning stage are trained once for all cells with the same settings, in `out/shared`. Any
    number of processes, on any machines that see the folder, may run the same study: each cell is run by one of them.
    A cell that fails is written down in its `failure.json`, and the others go on.

    Args:
        study: what to run.
        out: a new folder, or one of the same study.
        console: where progress is shown; None shows nothing.
        jobs: cells at a time.
        call: runs a recipe into a folder; by default in a process of its own, so that a crash costs one cell.

    Returns:
        Cell -> `done`, `failed`, or `elsewhere` where another process is at it.

    Raises:
        SpecError: before anything runs: if a cell is no valid recipe, or `out` holds another study.
    """
    out, cells = output_folder(out), study.cells()
    prepare(study, cells, out)
    worker = _Worker(cells, out, console or Console(quiet=True))
    with ThreadPoolExecutor(jobs) as threads:
        for done in [threads.submit(worker.work, call) for _ in range(jobs)]:
            done.result()
    return worker.states


def prepare(study: Study, cells: list[Cell], out: Path) -> None:
    """Write the study down, or see that the one that is there is the same."""
    written = out / STUDY
    # First what lies there, then the file: another process may be writing it just now, and cells come after it.
    strangers = out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir())
    if written.exists() and (other := read_settings(written, "study").get("name")) != study.name:
        raise SpecError(f"{out} holds the study {other!r}; choose another --out")
    if strangers and not written.exists():
        raise SpecError(f"{out} holds something else than a study; choose another --out")
    for cell in cells:
        refuse_another(cell.recipe, out / cell.name)
    write_atomically(written, yaml.safe_dump(resolved(study).plain(), sort_keys=False, width=120).encode())


def standing(cells: list[Cell], out: Path) -> dict[str, State]:
    """Cell -> `done`, `failed` or `open`, by what its folder holds."""
    return {cell.name: _standing(cell, out / cell.name) for cell in cells}


def _standing(cell: Cell, folder: Path) -> State:
    try:
        done = read_done(folder)
    except CheckpointError:  # it is run again, and finds what is finished
        done = None
    if done is not None and _is_of(cell, done.recipe):
        return "done"
    return "failed" if (folder / FAILED).exists() else "open"


def _failed_before(folder: Path, moment: float) -> bool:
    try:
        failure = read_failure(folder)
    except CheckpointError:
        return True
    return failure is None or failure.time < moment


def _settings(cell: Cell) -> dict[str, Any]:
    return cell.recipe.plain() | {"trainer": None}


def _is_of(cell: Cell, settings: dict[str, Any]) -> bool:
    """Whether a cell with these settings is `cell`, on whatever machine; what they lack is at its default."""
    try:
        return Recipe.parse(settings | {"trainer": cell.recipe.trainer.plain()}, cell.name) == cell.recipe
    except SpecError:  # of another version, which knew other settings
        return False


class _Worker:
    """Goes through cells until each is finished, failed, or in other hands."""

    def __init__(self, cells: list[Cell], out: Path, console: Console) -> None:
        self.cells, self.out, self.console = cells, out, console
        self.began = time.time()
        self.states: dict[str, State] = {}
        self.broken: dict[str, Exception] = {}

    def work(self, call: Call | None) -> None:
        own = _Process() if call is None else None
        pending = list(self.cells)
        try:
            while pending:
                left = [cell for cell in pending if not self._settled(cell, call or own)]  # type: ignore[arg-type]
                if len(left) == len(pending):
                    time.sleep(POLL)
                pending = left
        finally:
            if own is not None:
                own.close()

    def _settled(self, cell: Cell, call: Call) -> bool:
        """Whether nothing is left to do here for the cell; not so while others train what it shares."""
        folder = self.out / cell.name
        if (state := self._known(cell)) is not None:
            self.states[cell.name] = state
            return True
        with claim(self.out / CLAIMS, cell.name) as ours:
            if not ours:
                self.states.setdefault(cell.name, "elsewhere")
                return True
            if (state := self._known(cell)) is not None:  # it was finished between the look and the claim
                self.states[cell.name] = state
                return True
            start = time.perf_counter()
            try:
                if not self._start(cell, call):
                    return False
                call(cell.recipe.plain(), str(folder))
            except Exception as error:
                self._failed(cell, error)
                return True
            seconds = time.perf_counter() - start
            (folder / FAILED).unlink(missing_ok=True)
            write_json(folder / DONE, {"labels": cell.labels, "seconds": seconds, "recipe": _settings(cell)})
            self.states[cell.name] = "done"
            self.console.print(f"{cell.name}: done in {seconds:.0f} s", highlight=False, markup=False)
        return True

    def _known(self, cell: Cell) -> State | None:
        """`done`, or `failed` if that has happened since we began."""
        folder = self.out / cell.name
        state = _standing(cell, folder)
        if state == "failed" and _failed_before(folder, self.began):
            return None
        return None if state == "open" else state

    def _start(self, cell: Cell, call: Call) -> bool:
        """Give the cell the stages that it shares with others; False if someone else is training them now."""
        first = trunk(cell.recipe)
        if first is None:
            return True
        shared = self.out / SHARED / key(first)
        with claim(self.out / CLAIMS, shared.name) as ours:
            if not ours:
                return False
            if shared.name in self.broken:
                raise self.broken[shared.name]
            try:
                call(first.plain(), str(shared))
            except Exception as error:
                self.broken[shared.name] = error
                raise
        adopt(first, shared, self.out / cell.name)
        return True

    def _failed(self, cell: Cell, error: Exception) -> None:
        shown = str(error) if isinstance(error, HydrapruneError) else f"{type(error).__name__}: {error}"
        record = {"error": shown, "trace": "".join(traceback.format_exception(error)), "time": time.time()}
        write_json(self.out / cell.name / FAILED, record | {"labels": cell.labels})
        self.states[cell.name] = "failed"
        self.console.print(f"{cell.name}: failed: {shown}", highlight=False, markup=False)


class _Process:
    """Runs recipes in a process beside this one, and in a new one after a failure."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def __call__(self, recipe: dict[str, Any], out: str) -> None:
        self._pool = self._pool or ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        try:
            self._pool.submit(run_plain, recipe, out).result()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def run_plain(recipe: dict[str, Any], out: str) -> None:
    """Run a recipe, given as plain settings, into a folder."""
    run(Recipe.parse(recipe, out), out)
