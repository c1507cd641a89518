"""Files that are whole or absent: text, JSON and YAML, written atomically, read with a check; and paths."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from hydraprune.core.errors import CheckpointError, SpecError, TrainingError
from hydraprune.core.sealed import DIGEST, NewerError, unsealed, with_digest

HOST = re.sub(r"[^\w-]", "-", socket.gethostname())[:40]
TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<host>[\w-]+)\.(?P<pid>\d+)\.\w+\.tmp")
"""What a file is called while it is written: its name, and which process writes it."""
SHOWN = 80
"""Letters of its name, at most: all together must not be longer than a file system allows."""
STALE = 24 * 3600.0
"""Seconds after which a temporary file of another machine is nobody's."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write all of `content`, or leave what was there; what killed processes left of such a file is removed.

    Raises:
        TrainingError: if the disk refuses; the earlier file is untouched.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shown = path.name[:SHOWN]
        sweep(path.parent, shown)
        start = f".{shown}.{HOST}.{os.getpid()}."
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=start, suffix=".tmp")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException as error:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        reason = error.strerror or str(error)
        raise TrainingError(
            f"cannot write {path}: {reason}; mend that and run the same command again, nothing written before is lost"
        ) from None


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A place beside `path` and of its name, where a file or folder is made that then becomes `path`, whole.

    What was there stays until then, and if anything fails.

    Raises:
        TrainingError: if the disk refuses.
    """
    aside = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shown = path.name[:SHOWN]
        sweep(path.parent, shown)
        start = f".{shown}.{HOST}.{os.getpid()}."
        aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=start, suffix=".tmp"))
        made = aside / path.name
        yield made
        if path.is_dir() and not path.is_symlink():
            path.rename(aside / "earlier")
        made.replace(path)
    except OSError as error:
        raise TrainingError(
            f"cannot write {path}: {reason(error)}; mend that and run the same command again, nothing written before "
            "is lost"
        ) from None
    finally:
        if aside is not None:
            with suppress(OSError):
                if (aside / "earlier").exists() and not path.exists():
                    (aside / "earlier").rename(path)
            shutil.rmtree(aside, ignore_errors=True)


def append(path: Path, content: bytes) -> None:
    """Add `content` to the end of a file, which is made if it is not there.

    Raises:
        TrainingError: if the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as end:
            end.write(content)
    except OSError as error:
        raise TrainingError(
            f"cannot write {path}: {error.strerror}; mend that and run the same command again"
        ) from None


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files directly in `folder`, or those of the file `name` alone, that nobody writes any more.

    Their process, on this machine, has ended, or they are older than a day.
    """
    with suppress(OSError), os.scandir(folder) as files:
        for file in files:
            found = TEMPORARY.fullmatch(file.name)
            if found is not None and name in (None, found["name"]) and _abandoned(Path(file.path), found):
                if file.is_dir(follow_symlinks=False):
                    shutil.rmtree(file.path, ignore_errors=True)
                else:
                    os.unlink(file.path)


def _abandoned(file: Path, found: re.Match[str]) -> bool:
    if time.time() - file.stat().st_mtime > STALE:
        return True
    try:
        os.kill(int(found["pid"]) if found["host"] == HOST else os.getpid(), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return False


def existing(path: Path | str) -> Path:
    """`path`, where something lies.

    Raises:
        SpecError: if nothing does.
    """
    if not os.path.exists(path):
        raise SpecError(f"there is no {path}; correct the path")
    return Path(path)


def output_folder(out: Path | str) -> Path:
    """`out` as a folder to write into, which need not be there yet.

    Raises:
        SpecError: if it has no name or an impossible one, a file lies there, or it may not be written.
    """
    if not isinstance(out, str | Path):
        raise SpecError(f"the folder to write into is a {type(out).__name__}; give its path")
    if not str(out):
        raise SpecError("the folder to write into has no name; give one, or `.` for the working directory")
    folder = Path(out)
    for place in (folder, *folder.absolute().parents):
        try:
            mode = place.stat().st_mode
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise SpecError(f"cannot write into {out}: {reason(error)}; choose another folder") from None
        if not stat.S_ISDIR(mode):
            raise SpecError(f"cannot write into {out}: {place} is a file; choose another folder, or move the file")
        if not os.access(place, os.W_OK | os.X_OK):
            raise SpecError(f"cannot write into {out}: {place} may not be written; choose another folder")
        break
    return folder


def output_file(out: Path | str) -> Path:
    """`out` as a file to write.

    Raises:
        SpecError: if it has no name, or its folder cannot be written into.
    """
    if not str(out):
        raise SpecError("the file to write has no name; give one")
    output_folder(Path(out).parent)
    return Path(out)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; a mapping with its version and the digest of its entries."""
    if isinstance(value, dict):
        value = with_digest(value)
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


REMEDY = "restore it, or run again into a new folder"
NODES, DEPTH = 1_000_000, 64
"""Values that a file may stand for, and groups inside one another; aliases let a few lines stand for billions."""


def inside(root: Path, path: Path) -> Path:
    """`path`, which lies in the folder `root` whatever links there are on the way; `root` itself may be one.

    Raises:
        CheckpointError: if it leads outside of the folder.
    """
    try:
        within = path.resolve().is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError):  # links in a circle, a name that no disk takes
        within = False
    if not within:
        raise CheckpointError(f"{path} leads outside of {root}, so it is not read; put the file itself there")
    return path


def read_text(path: Path, remedy: str = REMEDY) -> str:
    """Read UTF-8.

    Raises:
        CheckpointError: if the file is missing, unreadable or no UTF-8; it names the file and the `remedy`.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error, remedy) from None


def read_json(path: Path, remedy: str = REMEDY, *, sealed: bool = False) -> Any:
    """Read JSON; a mapping without its version and its digest, which must be that of its other entries.

    Args:
        sealed: refuse a mapping that has no digest, as other programs write it.

    Raises:
        CheckpointError: if the file is missing, is no JSON, is nested too deeply, was altered or is of a later
            version; it names the file and the `remedy`.
    """
    text = read_text(path, remedy)
    try:
        value = json.loads(text)
        refuse_endless(value)
        if sealed and isinstance(value, dict) and DIGEST not in value:
            raise ValueError("it has no digest: it is of an earlier version, or was altered")
        if isinstance(value, dict):
            value = unsealed(value)
    except NewerError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, error, remedy) from None
    return value


def read_yaml(path: Path, remedy: str = REMEDY) -> Any:
    """Read YAML made of plain values; nothing is constructed from its tags.

    Raises:
        CheckpointError: if the file is missing, is no YAML, is nested too deeply, or stands for more than `NODES`
            values; it names the file and the `remedy`, and shows nothing of what the file holds.
    """
    text = read_text(path, remedy)
    try:
        value = yaml.safe_load(text)
        refuse_endless(value)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _unreadable(path, error, remedy) from None
    return value


def read_lines(
    path: Path, remedy: str = REMEDY, told: Callable[[str], None] | None = None
) -> dict[int, dict[str, Any]]:
    """Read lines of JSON mappings, by their numbers from 1, without their digests.

    A last line without an end was being written by a process that was killed; it is left out.

    Args:
        told: gets a sentence about each damaged line, which is then left out and raises nothing.

    Raises:
        CheckpointError: if the file is missing, or a line is no JSON mapping or was altered; it names the line and the
            `remedy`.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:
        raise _unreadable(path, error, remedy) from None
    records = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line.decode())
            if not isinstance(record, dict):
                raise ValueError("no mapping")
            records[number] = unsealed(record)
        except NewerError as error:
            raise CheckpointError(f"{path}:{number}: {error}") from None
        except (ValueError, RecursionError) as error:
            damage = _unreadable(f"{path}:{number}", error, remedy)
            if told is None:
                raise damage from None
            told(str(damage))
    return records


def _unreadable(path: Path | str, error: Exception, remedy: str) -> CheckpointError:
    return CheckpointError(f"{path} is unreadable ({reason(error)}); {remedy}")


def reason(error: Exception) -> str:
    """Why a file could not be read, in a few words that show nothing of what it holds."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"  # the whole error quotes the line
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:200]


def refuse_endless(value: Any) -> None:
    """See that a value out of a file can be walked through: plain, at most `NODES` values, `DEPTH` deep.

    Raises:
        ValueError: if it stands for more.
        RecursionError: if it is nested deeper.
    """
    _count(value, NODES)


def _count(value: Any, left: int, depth: int = 0) -> int:
    """How many of `left` values may still follow.

    Raises:
        ValueError: if `value` stands for more.
        RecursionError: if it is nested more than `DEPTH` deep, so that whoever walks through it need not care.
    """
    if left <= 0:
        raise ValueError(f"it stands for more than {NODES} values")
    if depth > DEPTH:
        raise RecursionError
    left -= 1
    parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    for part in parts:
        left = _count(part, left, depth + 1)
    return left
