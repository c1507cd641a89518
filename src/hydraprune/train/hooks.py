"""What watches training: a progress bar, and a log of every epoch."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from hydraprune.core.files import append, read_lines, write_atomically
from hydraprune.core.hook import Hook
from hydraprune.core.objective import Clock
from hydraprune.core.sealed import with_digest

if TYPE_CHECKING:
    from hydraprune.train.curves import Curves


def progress_bar(console: Console) -> Progress:
    """A bar with a label, a note (throughput, loss) and the time left; it disappears when it is done."""
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:3.0f}%"),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


class ProgressBar(Hook):
    """One bar per stage, with images per second, the loss and the time left; one line per stage stays."""

    def __init__(self, label: str, console: Console) -> None:
        self._label = label
        self._console = console
        self._bar = progress_bar(console)
        self._images = 0
        self._last: dict[str, float] = {}

    def on_note(self, text: str) -> None:
        self._console.print(f"{self._label}: {text}", highlight=False, markup=False, soft_wrap=True)

    def on_start(self, epochs: int, steps_per_epoch: int, done: int) -> None:
        total = epochs * steps_per_epoch
        self._task = self._bar.add_task(self._label, total=total, completed=done * steps_per_epoch, note="")
        if done:
            self._console.print(f"{self._label}: resumed after epoch {done} of {epochs}")
        self._bar.start()

    def on_step(self, clock: Clock, images: int, loss: float) -> None:
        self._images += images
        elapsed = self._bar.tasks[self._task].elapsed or 0.0
        speed = f"{self._images / elapsed:,.0f} images/s" if elapsed > 0.5 else ""
        epoch = -(-clock.step // clock.steps_per_epoch)
        self._bar.update(self._task, advance=1, note=f"epoch {epoch}/{clock.epochs}  loss {loss:.3f}  {speed}")

    def on_epoch(self, epoch: int, model: nn.Module, metrics: dict[str, float]) -> None:
        self._last = metrics

    def on_end(self) -> None:
        self._bar.stop()
        shown = ("loss", "accuracy", "robust_accuracy", "validation_accuracy", "validation_robust_accuracy")
        figures = [f"{name.replace('_', ' ')} {self._last[name]:.3f}" for name in shown if name in self._last]
        if figures:
            self._console.print(f"{self._label}: {', '.join(figures)}")


class Log(Hook):
    """Every epoch's metrics as a line of JSON in `file`, and below `curves` for TensorBoard, if that is installed.

    Args:
        stage: the name of the training stage.
        file: the log of the whole run.
        curves: a folder, with one of its own for every stage.
        told: gets a line if damaged lines of an earlier run are dropped.
    """

    def __init__(self, stage: str, file: Path, curves: Path, told: Callable[[str], None] = lambda why: None) -> None:
        self._stage = stage
        self._file = file
        self._told = told
        self._curves: Curves | None = None
        with suppress(ImportError):
            from hydraprune.train.curves import Curves

            self._curves = Curves(curves / stage)

    def on_start(self, epochs: int, steps_per_epoch: int, done: int) -> None:
        if self._file.exists():
            self._mend(done)

    def on_epoch(self, epoch: int, model: nn.Module, metrics: dict[str, float]) -> None:
        append(self._file, _line({"stage": self._stage, "epoch": epoch, **metrics}))
        if self._curves is not None:
            self._curves.add(epoch, metrics)

    def _mend(self, done: int) -> None:
        """Leave whole lines only, of epochs that were saved: a killed run may have logged one that is taken again."""
        damaged: list[str] = []
        lines = read_lines(self._file, "it is dropped", damaged.append)
        kept: dict[tuple[str, int], dict[str, Any]] = {}
        for number, line in lines.items():
            stage, epoch = line.get("stage"), line.get("epoch")
            if not isinstance(stage, str) or type(epoch) is not int:
                damaged.append(f"{self._file}:{number} names no stage and epoch; it is dropped")
            elif (stage, epoch) in kept:
                damaged.append(f"{self._file}:{number} stands there twice; it is dropped")
            elif stage != self._stage or epoch <= done:
                kept[stage, epoch] = line
        if damaged:
            more = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
            self._told(f"{damaged[0]}{more}")
        write_atomically(self._file, b"".join(map(_line, kept.values())))


def _line(entries: dict[str, Any]) -> bytes:
    return json.dumps(with_digest(entries)).encode() + b"\n"
