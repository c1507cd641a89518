"""Files that are whole or absent: tensors and JSON in safetensors, written atomically, read with a check."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hydraprune.core.errors import CheckpointError, TrainingError

HEADER = "hydraprune"
"""The one entry of the header of a file of tensors: the digest of its content, and what is said of it, as JSON."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write all of `content`, or leave what was there.

    Raises:
        TrainingError: if the disk refuses; the earlier file is untouched.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        reason = error.strerror or str(error)
        raise TrainingError(
            f"cannot write {path}: {reason}; mend that and run the same command again, it goes on from the last epoch"
        ) from None


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
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


def read_json(path: Path, remedy: str = REMEDY) -> Any:
    """Read JSON.

    Raises:
        CheckpointError: if the file is missing, is no JSON, or is nested too deeply; it names the file and the
            `remedy`.
    """
    text = read_text(path, remedy)
    try:
        value = json.loads(text)
        _count(value, NODES)
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


def read_lines(path: Path, remedy: str = REMEDY) -> list[dict[str, Any]]:
    """Read lines of JSON mappings. A last line without an end was being written by a killed process; it is left out.

    Raises:
        CheckpointError: if the file is missing, or another line is no JSON mapping; it names the line and the `remedy`.
    """
    records = []
    for number, line in enumerate(read_text(path, remedy).split("\n")[:-1], start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _unreadable(f"{path}:{number}", error, remedy) from None
        if not isinstance(record, dict):
            raise _unreadable(f"{path}:{number}", TypeError("no mapping"), remedy)
        records.append(record)
    return records


def _unreadable(path: Path | str, error: Exception, remedy: str) -> CheckpointError:
    if isinstance(error, RecursionError):
        why = "it is nested too deeply"
    elif isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        why = f"line {error.problem_mark.line + 1}: {error.problem}"  # the whole error quotes the line
    else:
        why = " ".join(str(getattr(error, "strerror", None) or error).split())
    return CheckpointError(f"{path} is unreadable ({why[:200]}); {remedy}")


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


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote. Nothing is unpickled.

    Raises:
        CheckpointError: if the file is missing, truncated, altered, or was not written by `save_tensors`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; give the folder of a finished stage, such as RUN/finetune") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is corrupt or truncated ({error}); restore it or train again") from None
    if header.keys() != {HEADER}:
        raise CheckpointError(f"{path} is no hydraprune checkpoint; load a foreign file with `--weights`")
    try:
        digest, text = json.loads(header[HEADER])
        meta = json.loads(text)
        intact = digest == _digest(tensors, text) and isinstance(meta, dict)
    except (ValueError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise CheckpointError(f"{path} has been altered: its checksum does not match; restore it or train again")
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
