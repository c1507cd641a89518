"""Who works on what: claims by files, for processes and machines that see the same folder."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BEAT = 5.0
"""Seconds between signs of life."""
STALE = 120.0
"""Seconds without one after which a claim is dead."""


@contextmanager
def claim(folder: Path, name: str) -> Iterator[bool]:
    """Inside, `name` is ours; False if it is another's, who lives.

    A claim is a file `NAME@N` that only one can create. It is dead once its process on this machine has ended, or once
    it has shown no sign of life for `STALE` seconds; whoever creates `NAME@N+1` has taken it over.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number, held = _newest(folder, name)
    if held:
        yield False
        return
    path = folder / f"{name}@{number + 1}"
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        yield False
        return
    with os.fdopen(handle, "w") as file:
        json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
    ended = threading.Event()
    threading.Thread(target=_beat, args=(path, ended), daemon=True).start()
    try:
        yield True
    finally:
        ended.set()
        path.unlink(missing_ok=True)


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with suppress(OSError):
            os.utime(path)


def _newest(folder: Path, name: str) -> tuple[int, bool]:
    """The highest number among the claims of `name`, and whether its holder lives."""
    numbers = [int(path.name.removeprefix(f"{name}@")) for path in folder.glob(f"{name}@*")]
    number = max(numbers, default=0)
    return number, bool(numbers) and _alive(folder / f"{name}@{number}")


def _alive(path: Path) -> bool:
    try:
        age = time.time() - path.stat().st_mtime
        text = path.read_text()
    except FileNotFoundError:  # released just now: whoever else saw it may be about to take its number
        return True
    if age > STALE:
        return False
    try:
        holder = json.loads(text)
    except ValueError:  # being written
        return True
    if holder["host"] != socket.gethostname():
        return True
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
