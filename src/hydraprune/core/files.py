"""Files that are whole or absent: tensors and JSON in safetensors, written atomically, read with a check."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hydraprune.core.errors import CheckpointError, SpecError, TrainingError
from hydraprune.core.sealed import DIGEST, NewerError, unsealed, with_digest

HEADER = "hydraprune"
"""The one entry of the header of a file of tensors: the digest of its content, and what is said of it, as JSON."""


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


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files directly in `folder`, or those of the file `name` alone, that nobody writes any more.

    Their process, on this machine, has ended, or they are older than a day.
    """
    with suppress(OSError), os.scandir(folder) as files:
        for file in files:
            found = TEMPORARY.fullmatch(file.name)
            if found is not None and name in (None, found["name"]) and _abandoned(Path(file.path), found):
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
            raise SpecError(f"cannot write into {out}: {_reason(error)}; choose another folder") from None
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
        _count(value, NODES)
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
        _count(value, NODES)
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
    return CheckpointError(f"{path} is unreadable ({_reason(error)}); {remedy}")


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"  # the whole error quotes the line
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:200]


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


def _digest(tensors: Mapping[str, Tensor], meta: str) -> str:
    total = hashlib.sha256(meta.encode())
    for name in sorted(tensors):
        total.update(f"{name}{tensors[name].dtype}{tuple(tensors[name].shape)}".encode())
        total.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and JSON-ready `meta` to one safetensors file, atomically; equal content makes equal files."""
    stored = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    text = json.dumps(dict(meta))
    # One entry: safetensors writes several in any order.
    header = {HEADER: json.dumps([_digest(stored, text), text])}
    write_atomically(path, save({name: value.clone() for name, value in stored.items()}, header))


def load_tensors(path: Path, remedy: str = "restore it or train again") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote. Nothing is unpickled.

    Raises:
        CheckpointError: if the file is missing, truncated, altered, or was not written by `save_tensors`; where it is
            damaged, it names the `remedy`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; give the folder of a finished stage, such as RUN/finetune") from None
    except (OSError, SafetensorError, ValueError, TypeError, AttributeError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path} is corrupt or truncated ({_reason(error)}); {remedy}") from None
    if header.keys() != {HEADER}:
        raise CheckpointError(f"{path} is no hydraprune checkpoint; load a foreign file with `--weights`")
    try:
        digest, text = json.loads(header[HEADER])
        intact = digest == _digest(tensors, text)
        meta = json.loads(text)
    except (ValueError, TypeError, AttributeError, RecursionError):
        intact, meta = False, None
    if not intact or not isinstance(meta, dict):
        raise CheckpointError(f"{path} has been altered: its checksum does not match; {remedy}")
    return tensors, meta


def pack_mask(mask: Tensor) -> Tensor:
    """A bool mask as packed bits, (ceil(numel / 8),) uint8, most significant bit first."""
    return torch.from_numpy(np.packbits(mask.detach().cpu().numpy().ravel()))


def unpack_mask(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The mask (bool, `shape`) that `pack_mask` packed.

    Raises:
        CheckpointError: if the number of bits does not fit the shape, or that is none.
    """
    if not all(type(side) is int and side >= 0 for side in shape):
        raise CheckpointError(f"a mask cannot have the shape {shape}; restore the file or train again")
    total = math.prod(shape)
    if packed.dtype != torch.uint8 or packed.shape != ((total + 7) // 8,):
        raise CheckpointError(f"a mask of {tuple(packed.shape)} bytes does not fit a weight of shape {shape}")
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=total).astype(bool)).view(shape)
