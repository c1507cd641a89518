"""One writer at a time: a folder belongs to whoever has made and locked the file `.lock` in it.

The kernel keeps the lock (`lockf`): it ends with its process, whatever ends that, and no child inherits it. Where the
file system has no locks, or each machine has its own, the file's content and its sign of life stand for it.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from hydraprune.core.errors import BusyError, HydrapruneError, TrainingError
from hydraprune.core.files import sweep

LOCK = ".lock"
BEAT = 5.0
"""Seconds between a holder's signs of life."""
STALE = 120.0
"""Seconds without one after which a holder on another machine is dead."""
TURN = 2.0
"""Seconds in which a lock changes hands."""
_WITHOUT = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}
"""What a file system without locks answers."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes:
        host: name of the machine.
        pid: process there.
        command: its command line.
        since: when it took the lock, in local time.
    """

    host: str
    pid: int
    command: str
    since: str

    @classmethod
    def here(cls) -> Holder:
        """This process."""
        command = shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
        return cls(socket.gethostname(), os.getpid(), _plain(command), time.strftime("%Y-%m-%d %H:%M:%S"))

    @property
    def near(self) -> bool:
        """Whether it is on this machine."""
        return self.host == socket.gethostname()

    @property
    def running(self) -> bool:
        """Whether a process of its number is there, on this machine, beside this one."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return self.pid != os.getpid()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} ({self.command}, since {self.since})"


@dataclass
class _Hold:
    """How often a thread of this process has entered a folder."""

    thread: int
    depth: int = 0


_held: dict[tuple[int, str], _Hold] = {}
"""(process, folder) -> its hold: the kernel keeps processes apart, not threads. A forked child begins without any."""


@contextmanager
def own(folder: Path | str) -> Iterator[None]:
    """Inside, this thread is the only writer of `folder`, on every machine that sees it; it may enter again.

    The folder is made. What had to be made for it is removed at the end if nothing was put there.

    Raises:
        BusyError: if another process or thread is in it; it names that, and what to do.
        TrainingError: if the folder cannot be made or written.
    """
    where = os.path.realpath(folder)
    key = os.getpid(), where
    hold = _held.setdefault(key, _Hold(threading.get_ident()))
    if hold.thread != threading.get_ident():
        raise BusyError(f"{folder} is being written by another thread of this process; wait for it")
    hold.depth += 1
    try:
        if hold.depth > 1:
            yield
        else:
            with _locked(Path(where), folder):
                sweep(Path(where))
                yield
    finally:
        hold.depth -= 1
        if not hold.depth:
            del _held[key]


@contextmanager
def awaited(folder: Path | str, told: Callable[[str], None]) -> Iterator[None]:
    """`own`, once whoever is in the folder has left it; `told` gets a line about a wait."""
    with ExitStack() as held:
        waits = False
        while True:
            try:
                held.enter_context(own(folder))
                break
            except BusyError as busy:
                if not waits:
                    told(f"waiting: {busy}")
                waits = True
                time.sleep(TURN / 4)
        yield


def holder(folder: Path | str) -> Holder | None:
    """Who holds the folder, or has left it locked; None if nobody."""
    where = os.path.realpath(folder)
    if (os.getpid(), where) in _held:  # to close the file would give up the lock
        return Holder.here()
    try:
        file = os.open(os.path.join(where, LOCK), os.O_RDONLY | _SAFELY)
    except OSError:
        return None
    try:
        return _read(file)
    finally:
        os.close(file)


@contextmanager
def _locked(where: Path, shown: Path | str) -> Iterator[None]:
    path, process, made = where / LOCK, os.getpid(), list[Path]()
    try:
        until = time.monotonic() + TURN
        while True:
            made += [folder for folder in (where, *where.parents) if not folder.exists()]
            try:
                where.mkdir(parents=True, exist_ok=True)
                file = _take(path, shown)
                break
            except (FileNotFoundError, FileExistsError):
                if (where.exists() and not where.is_dir()) or time.monotonic() > until:
                    raise
                time.sleep(TURN / 100)  # whoever had made the folder has removed it
    except OSError as error:
        _unmake(made)
        raise TrainingError(f"cannot write in {shown}: {error.strerror}; mend that, or choose another folder") from None
    except BaseException:
        _unmake(made)
        raise
    ended = threading.Event()
    beat = threading.Thread(target=_beat, args=(file, ended), daemon=True)
    beat.start()
    try:
        yield
    finally:
        if os.getpid() == process:  # and no child that was forked meanwhile
            ended.set()
            beat.join()
            with suppress(OSError):
                _remove(path, file)
            os.close(file)
            _unmake(made)


def _unmake(folders: list[Path]) -> None:
    """Remove folders that were made, the innermost first, unless something is in them."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


_SAFELY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""No link and no pipe that lies there under the lock's name leads astray."""


def _take(path: Path, shown: Path | str) -> int:
    """A descriptor of the file `path`, made and locked by us. No other may be opened: to close it would unlock.

    Raises:
        BusyError: if it is another's.
        FileNotFoundError: if its folder is gone.
    """
    until = time.monotonic() + TURN
    while True:
        with suppress(FileExistsError):
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _SAFELY, 0o644)
            if _signed(path, file):
                return file
            continue
        with suppress(FileNotFoundError):
            _clear(path, shown, last=time.monotonic() > until)
            time.sleep(TURN / 100)


def _signed(path: Path, file: int) -> bool:
    """Lock a file that we have made and write our name into it; False, and closed, if it was removed meanwhile."""
    try:
        _lock(file, wait=True)  # for whoever looks at it just now
        os.write(file, json.dumps(asdict(Holder.here())).encode())
        if _is(path, file):
            return True
    except BaseException:
        _remove(path, file)
        os.close(file)
        raise
    os.close(file)
    return False


def _clear(path: Path, shown: Path | str, *, last: bool) -> None:
    """Remove a lock whose holder is dead; leave one that is changing hands, unless this is the `last` look.

    Raises:
        BusyError: if its holder lives.
    """
    file = os.open(path, os.O_RDWR | _SAFELY)
    try:
        free = _lock(file)
        found = _read(file)
        if free is False:
            # One without a living name is about to be signed, or cleared by another.
            alive = last or (found is not None and (not found.near or found.running))
        elif found is None:
            alive = False
            if not last:  # about to be signed
                return
        else:
            fresh = time.time() - os.fstat(file).st_mtime <= STALE
            alive = fresh and (found.running and free is None if found.near else True)
        if alive:
            raise BusyError(_refusal(shown, found))
        if free is not False:
            _remove(path, file)
    finally:
        os.close(file)


def _refusal(shown: Path | str, found: Holder | None) -> str:
    remedy = "wait for it, or end it"
    if found is not None and not found.near:
        remedy += f" there; if {found.host} is gone, wait {STALE:.0f} seconds"
    return f"{shown} is being written by {found or 'another process'}; {remedy}"


def _lock(file: int, *, wait: bool = False) -> bool | None:
    """Whether the kernel gives us the file; None if its file system has no locks."""
    try:
        import fcntl
    except ImportError:
        raise HydrapruneError("this system has no POSIX locks; use Linux or macOS, or WSL on Windows") from None
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno in _WITHOUT:
            return None
        raise
    return True


def _read(file: int) -> Holder | None:
    """Who has signed the file; None if nobody has, or it is damaged."""
    try:
        values = json.loads(os.pread(file, 1 << 16, 0))
        host, pid, command, since = (_plain(values[name]) for name in ("host", "pid", "command", "since"))
        return Holder(host, int(pid), command, since) if 0 < int(pid) < 1 << 31 else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _plain(value: object) -> str:
    """Fit for one line of a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in str(value))[:300]


def _is(path: Path, file: int) -> bool:
    """Whether `path` still is the open file."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(file))
    return False


def _remove(path: Path, file: int) -> None:
    if _is(path, file):
        path.unlink(missing_ok=True)


def _beat(file: int, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with suppress(OSError):
            os.utime(file)
