"""Cells are settled in a process beside the study's own, which ends with it."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import CancelledError
from contextlib import suppress
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from rich.console import Console

from hydraprune.core.errors import HydrapruneError
from hydraprune.study.schema import Cell
from hydraprune.study.settle import Outcome, bury, known, run_plain, settle


class Beside:
    """Settles cells in a process, and in a new one after a failure: a crash, or a GPU left in error, costs one cell."""

    def __init__(self, out: Path, began: float, width: int | None = None) -> None:
        """With `width`, the process shows its progress in so many columns."""
        self._out, self._began, self._width = out, began, width
        self._process: tuple[SpawnProcess, Connection] | None = None
        self._starting = threading.Lock()
        self._closed = False

    def __call__(self, cell: Cell) -> Outcome:
        """What came of the cell.

        Raises:
            CancelledError: if another thread has closed this.
            HydrapruneError: if it could not be written down.
        """
        if (state := known(cell, self._out, self._began)) is not None:
            return Outcome(state)
        process, pipe = self._process or self._started()
        try:
            pipe.send(cell)
            answer = pipe.recv()
        except (EOFError, OSError):
            if self._closed:
                raise CancelledError from None
            answer = bury(cell, self._out, *self._ended(process))
        if isinstance(answer, HydrapruneError):
            raise answer
        if answer.spoiled:
            self._end()
        return answer  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the process, whatever it is doing."""
        with self._starting:
            self._closed = True
        self._end()

    def _started(self) -> tuple[SpawnProcess, Connection]:
        context = get_context("spawn")
        with self._starting:
            if self._closed:
                raise CancelledError
            pipe, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, self._out, self._began, self._width))
            process.start()
            theirs.close()  # so that its end can be heard
            self._process = process, pipe
            return self._process

    def _ended(self, process: SpawnProcess) -> tuple[int, str]:
        """The number of a process that has ended by itself, and how that came."""
        process.join()
        self._process = None
        number, code = process.pid or 0, process.exitcode or 0
        how = f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
        return number, f"its process ended {how}; see what it wrote to the terminal, and whether memory was short"

    def _end(self) -> None:
        if self._process is not None:
            process, _ = self._process
            process.terminate()
            process.join()
            self._process = None


def _serve(pipe: Connection, out: Path, began: float, width: int | None) -> None:
    """Settle the cells that come through the pipe, until it is closed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    call = partial(run_plain, console=None if width is None else Console(width=width))
    with suppress(EOFError):
        while True:
            cell = pipe.recv()
            try:
                pipe.send(settle(cell, out, began, call))
            except HydrapruneError as error:
                pipe.send(error)


def _end_with_parent() -> None:
    """A parent that was killed cannot end us; what we are at goes on when the study is started again."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
