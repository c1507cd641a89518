"""A checkpoint in one file: packed, or safetensors with the zeros written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hydraprune.core.errors import SpecError
from hydraprune.core.files import write_atomically
from hydraprune.core.packing import MAGIC, Values, pack, unpack
from hydraprune.core.tensors import HEADER, load_tensors, save_tensors
from hydraprune.masks.view import LayerCount
from hydraprune.runs.meta import Meta, measured, sha256


class Single(NamedTuple):
    """What such a file holds.

    Attributes:
        meta: entries of `Meta`, unchecked.
        values: canonical name -> tensor, masks applied.
        masks: canonical name -> mask (bool).
        digest: SHA-256 of the file.
    """

    meta: dict[str, Any]
    values: dict[str, Tensor]
    masks: dict[str, Tensor]
    digest: str


def write_packed(
    path: Path, meta: Meta, values: Mapping[str, Tensor], masks: Mapping[str, Tensor], kind: Values
) -> None:
    """Write weights and masks near the limit of their entropy; see `core/packing.py`.

    Raises:
        SpecError: for another kind of values, or tensors that are neither float32 nor int64.
        MissingError: without zstandard.
        TrainingError: if the file cannot be written.
    """
    for name, value in values.items():
        if value.dtype not in (torch.float32, torch.int64):
            raise SpecError(f"{name!r} is {value.dtype}; a packed file takes float32, and int64 for counters")
    arrays = {name: value.numpy() for name, value in values.items()}
    content = pack(arrays, {name: mask.numpy() for name, mask in masks.items()}, _said(meta), kind)
    write_atomically(path, content)


def write_dense(path: Path, meta: Meta, values: Mapping[str, Tensor]) -> None:
    """Write weights as safetensors under the names that `load_state_dict` takes, what is removed as zeros.

    A weight that stays and is zero cannot be told from one that is removed, and counts as such.

    Raises:
        TrainingError: if the file cannot be written.
    """
    counts = {name: LayerCount(int(values[name].count_nonzero()), values[name].numel()) for name in meta.layers}
    save_tensors(path, values, _said(meta.model_copy(update=measured(counts))))


def _said(meta: Meta) -> dict[str, Any]:
    """What a file says of itself that leaves the machine: of absolute paths the last part alone.

    Digests of the files that it came from would be the longest part of a small network, and are of no use there.
    """
    said: dict[str, Any] = _local(meta.model_copy(update={"sha256": {}}).plain())
    return said


def _local(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _local(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_local(one) for one in value]
    for kind in (PurePosixPath, PureWindowsPath):
        if isinstance(value, str) and kind(value).is_absolute():
            return kind(value).name
    return value


def ours(path: Path) -> bool:
    """Whether a file is one of these, so far as its beginning tells; that it is whole is for `read` to find."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        if file.read(len(MAGIC)) == MAGIC:
            return True
    try:
        with safe_open(path, framework="pt") as tensors:
            return (tensors.metadata() or {}).keys() == {HEADER}
    except (OSError, SafetensorError):
        return False


def read(path: Path) -> Single:
    """What one of these files holds; whether it is true is for others to check.

    Raises:
        CheckpointError: if it is neither, or damaged.
        MissingError: for a packed file without zstandard.
    """
    with path.open("rb") as file:
        packed = file.read(len(MAGIC)) == MAGIC
    if packed:
        content = path.read_bytes()
        found = unpack(content, str(path))
        values, masks = (
            {name: torch.from_numpy(array) for name, array in each.items()} for each in (found.arrays, found.masks)
        )
        return Single(found.meta, values, masks, hashlib.sha256(content).hexdigest())
    dense, meta = load_tensors(path, "restore it or export it again")
    layers = meta.get("layers")
    named = [name for name in layers if name in dense] if isinstance(layers, dict) else []
    zeros = {name: dense[name] != 0 for name in named}
    return Single(meta, dense, {name: mask for name, mask in zeros.items() if not bool(mask.all())}, sha256(path))
