"""What watches training: a progress bar, and a log of every epoch."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]
from torch import nn

from hydraprune.core.errors import TrainingError
from hydraprune.core.files import read_lines, write_atomically
from hydraprune.core.hook import Hook
from hydraprune.core.objective import Clock
from hydraprune.core.sealed import with_digest


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
    """Every epoch's metrics as a line of JSON in `file`, and as TensorBoard curves below `curves`.

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
        # A file of its own for every start, as TensorBoard expects; names sort by time.
        self._events = curves / stage / f"events.out.tfevents.{time.time_ns()}"

    def on_start(self, epochs: int, steps_per_epoch: int, done: int) -> None:
        if self._file.exists():
            self._mend(done)

    def on_epoch(self, epoch: int, model: nn.Module, metrics: dict[str, float]) -> None:
        if not self._events.exists():
            self._event(file_version="brain.Event:2")
            self._event(step=epoch, session_log=SessionLog(status=SessionLog.START))
        _append(self._file, _line({"stage": self._stage, "epoch": epoch, **metrics}))
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._event(step=epoch, summary=Summary(value=values))

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

    def _event(self, **content: Any) -> None:
        """Add an event to the curves, at once: TensorBoard's own writer is a thread that a full disk kills loudly."""
        record = io.BytesIO()
        RecordWriter(record).write(Event(wall_time=time.time(), **content).SerializeToString())
        _append(self._events, record.getvalue())


def _line(entries: dict[str, Any]) -> bytes:
    return json.dumps(with_digest(entries)).encode() + b"\n"


def _append(file: Path, content: bytes) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab") as end:
            end.write(content)
    except OSError as error:
        raise TrainingError(
            f"cannot write {file}: {error.strerror}; mend that and run the same command again"
        ) from None
