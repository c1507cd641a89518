"""Commands in processes that may be killed: forks of this one, which start at once, and new ones, as a shell starts."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import hydraprune
from hydraprune.cli import main
from trials import points

MAIN = "from hydraprune.cli import main; main()"
SOURCE = Path(hydraprune.__file__).parent.parent
TRACE = "Traceback (most recent call last)"
TAG = "HYDRAPRUNE_TRIAL"


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: its exit status; minus the signal, if one ended it.
        value: what the call in a fork returned.
        out, err: what it wrote.
        peak: largest resident memory, MiB.
        hung: whether it had to be killed for its time.
    """

    code: int
    value: Any
    out: str
    err: str
    peak: float
    hung: bool

    @property
    def complaint(self) -> str | None:
        """The one line of a user's error; None if it ended otherwise."""
        lines = self.err.strip().splitlines()
        return lines[0] if self.code == 2 and len(lines) == 1 and lines[0].startswith("error: ") else None

    def brief(self) -> str:
        """For lists of failures: the exit status, and the end of what was written."""
        lines = (self.err.strip() or self.out.strip()).splitlines()
        return (
            f"{'hung' if self.hung else f'exit {self.code}'}: {' | '.join(line.strip() for line in lines[-2:])[:300]}"
        )


class Process:
    """A process in a session of its own, whose output is kept."""

    pid: int

    def __init__(self) -> None:
        self._files = [os.memfd_create(name) for name in ("out", "err", "value")]

    def kill(self, number: int = signal.SIGKILL, *, group: bool = True) -> None:
        with suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    def running(self, seconds: float) -> bool:
        """Whether it is still there after `seconds`."""
        descriptor = os.pidfd_open(self.pid)
        try:
            return not select.select([descriptor], [], [], max(0.0, seconds))[0]
        finally:
            os.close(descriptor)

    def end(self, seconds: float = 120) -> Ended:
        """Wait for it, but no longer than that."""
        hung = self.running(seconds)
        if hung:
            self.kill()
        _, status, usage = os.wait4(self.pid, 0)
        out, err, value = (_content(file) for file in self._files)
        code = os.waitstatus_to_exitcode(status)
        return Ended(code, json.loads(value) if value else None, out, err, usage.ru_maxrss / 1024, hung)


class Fork(Process):
    """`call` in a copy of this process, with `folder` as working directory and `limit` bytes of memory more."""

    def __init__(self, call: Callable[[], Any], folder: Path, *, limit: int | None = None) -> None:
        super().__init__()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            self._child(call, folder, limit)

    def _child(self, call: Callable[[], Any], folder: Path, limit: int | None) -> None:
        code = 1
        try:
            os.setsid()
            os.chdir(folder)
            for target, file in enumerate(self._files[:2], start=1):
                os.dup2(file, target)
            if limit is not None:
                pages = int(Path("/proc/self/statm").read_text().split()[0])
                resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + limit,) * 2)
            value = call()
            os.write(self._files[2], json.dumps(value).encode())
            code = 0
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            with suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)


class Started(Process):
    """A new process, as a shell starts it."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        super().__init__()
        path = os.pathsep.join([str(folder / "site"), str(SOURCE)])
        self._process = subprocess.Popen(
            arguments,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=self._files[0],
            stderr=self._files[1],
            env={**os.environ, "PYTHONPATH": path, TAG: str(folder)},
            start_new_session=True,
        )
        self.pid = self._process.pid

    def end(self, seconds: float = 120) -> Ended:
        ended = super().end(seconds)
        self._process.returncode = ended.code  # so that nobody waits for it again
        return ended


def command(*arguments: object, point: tuple[int, bool] | None = None) -> Callable[[], None]:
    """The command line `hydraprune ARGUMENTS`, for a fork; killed at a file operation, if there is a `point`."""

    def call() -> None:
        if point is not None:
            points.arm(*point)
        sys.argv = ["hydraprune", *map(str, arguments)]
        sys.path.insert(0, "")  # as the interpreter does for `python -c`
        main()

    return call


def started(folder: Path, *arguments: object, point: tuple[int, bool] | None = None) -> Started:
    """The same in a new process; a `point` holds for each process that it starts, too."""
    site = folder / "site" / "sitecustomize.py"
    site.parent.mkdir(exist_ok=True)
    site.write_text("" if point is None else f"{Path(points.__file__).read_text()}\n\narm{point}\n")
    return Started([sys.executable, "-c", MAIN, *map(str, arguments)], folder)


def alive(folder: Path, *sessions: int) -> list[int]:
    """Processes of these sessions, or that were started for a trial in `folder`, which have not ended."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError, ValueError, IndexError):
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                mine = int(session) in sessions or f"{TAG}={folder}\0" in (entry / "environ").read_text()
                if mine and state != "Z":
                    found.append(int(entry.name))
    return found


def all_ended(folder: Path, *sessions: int, seconds: float) -> list[int]:
    """Waits until none of them is left, but no longer than that; those that are, which are then killed."""
    deadline = time.monotonic() + seconds
    while (left := alive(folder, *sessions)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return left


def warm(folder: Path, *calls: Callable[[], Any]) -> None:
    """Import what these calls import, so that forks need not; raises unless a fork is safe afterwards."""

    def modules() -> list[str]:
        for call in calls:
            with suppress(SystemExit):
                call()
        return [name for name in sys.modules if name.partition(".")[0] not in ("__main__", "trials", "sitecustomize")]

    ended = Fork(modules, folder).end()
    if ended.value is None:
        raise SystemExit(f"the commands fail without any fault: {ended.brief()}")
    for name in ended.value:
        with suppress(Exception):
            import_module(name)
    names = [(entry / "comm").read_text().strip() for entry in Path("/proc/self/task").iterdir()]
    threads = [name for name in names if name != "jemalloc_bg_thd"]  # an allocator, which forks as it should
    if len(threads) > 1:
        raise SystemExit(f"several threads run in the process that is to be forked ({', '.join(threads)}); give it one")


def _content(file: int) -> str:
    with os.fdopen(file, "rb") as stream:
        stream.seek(0)
        return stream.read().decode(errors="replace")
