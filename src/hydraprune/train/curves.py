"""Curves for TensorBoard, by its package."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

from hydraprune.core.files import append


class Curves:
    """A file of events in `folder`."""

    def __init__(self, folder: Path) -> None:
        # One of its own for every start, as TensorBoard expects; names sort by time.
        self._file = folder / f"events.out.tfevents.{time.time_ns()}"

    def add(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """The metrics after an epoch; at once, as TensorBoard's own writer is a thread that a full disk kills loudly.

        Raises:
            TrainingError: if the disk refuses.
        """
        if not self._file.exists():
            self._event(file_version="brain.Event:2")
            self._event(step=epoch, session_log=SessionLog(status=SessionLog.START))
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._event(step=epoch, summary=Summary(value=values))

    def _event(self, **content: Any) -> None:
        record = io.BytesIO()
        RecordWriter(record).write(Event(wall_time=time.time(), **content).SerializeToString())
        append(self._file, record.getvalue())
