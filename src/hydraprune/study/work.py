"""Runs the cells of a study, beside other processes that do the same."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from rich.console import Console

from hydraprune.core.errors import SpecError
from hydraprune.core.files import output_folder, write_atomically
from hydraprune.recipes.library import dump, read_settings
from hydraprune.recipes.runner import refuse_another
from hydraprune.runs.files import STUDY
from hydraprune.study.beside import Beside
from hydraprune.study.schema import Cell, Study, read_study, resolved
from hydraprune.study.settle import Call, Outcome, State, settle

POLL = 1.0
"""Seconds between looks at what others are doing."""
PATIENCE = 10.0
"""Seconds for which nothing is left to others: those of a study that was killed take a moment to end."""


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
    board = _Board(cells, console or Console(quiet=True))
    width = board.console.width if jobs == 1 and console is not None else None  # one at a time shows its progress
    with ThreadPoolExecutor(jobs) as threads, ExitStack() as ended:
        working = []
        for _ in range(jobs):
            if call is not None:
                working.append(threads.submit(board.work, partial(settle, out=out, began=board.began, call=call)))
                continue
            beside = ended.enter_context(closing(Beside(out, board.began, width)))
            working.append(threads.submit(board.work, beside))
            working[-1].add_done_callback(lambda _, idle=beside: idle.close())  # type: ignore[misc]
        for done in working:
            done.result()
    return board.states


def prepare(study: Study, cells: list[Cell], out: Path) -> None:
    """Write the study down, or see that the one that is there is the same."""
    written = out / STUDY
    # First what lies there, then the file: another process may be writing it just now, and cells come after it.
    strangers = out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir())
    if written.exists() and (other := read_settings(written, "study").get("name")) != study.name:
        raise SpecError(f"{out} holds the study {other!r}; choose another --out")
    if strangers and not written.exists():
        raise SpecError(f"{out} holds something else than a study; choose another --out")
    if written.exists():
        lacking = {cell.name for cell in read_study(written).cells()} - {cell.name for cell in cells}
        if there := sorted(name for name in lacking if (out / name).exists()):
            raise SpecError(
                f"{out} holds cells that this grid lacks, such as {there[0]}; add to the grid, or choose another --out"
            )
    for cell in cells:
        refuse_another(cell.recipe, out / cell.name)
    write_atomically(written, dump(resolved(study)).encode())


class _Board:
    """The cells that are left, for several threads to take, and what came of the others."""

    def __init__(self, cells: list[Cell], console: Console) -> None:
        self.console = console
        self.began = time.time()
        self.states: dict[str, State] = {cell.name: "open" for cell in cells}
        self._left = [(0.0, cell) for cell in cells]
        """When to look at a cell next."""
        self._taking = threading.Lock()

    def work(self, attempt: Callable[[Cell], Outcome]) -> None:
        """Attempt cells until each is finished, failed, or in other hands."""
        while (cell := self._next()) is not None:
            state, note, _ = attempt(cell)
            self.states[cell.name] = state
            if note:
                self.console.print(note, highlight=False, markup=False)
            if state in ("elsewhere", "open"):
                with self._taking:
                    self._left.append((time.monotonic() + POLL, cell))

    def _next(self) -> Cell | None:
        """The cell whose turn it is; None if no other is left, or if others have been seen at all of them just now."""
        while True:
            with self._taking:
                if not self._left:
                    return None
                entry = min(self._left, key=lambda entry: entry[0])
                now = time.monotonic()
                if entry[0] <= now:
                    self._left.remove(entry)
                    return entry[1]
                others = all(self.states[cell.name] == "elsewhere" for _, cell in self._left)
                if others and time.time() > self.began + PATIENCE:
                    return None
            time.sleep(entry[0] - now)
