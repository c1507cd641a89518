"""Files of tensors that are whole or absent: safetensors with a digest, written atomically, read with a check."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hydraprune.core.errors import CheckpointError
from hydraprune.core.files import reason, refuse_endless, write_atomically

HEADER = "hydraprune"
"""The one entry of the header of a file of tensors: the digest of its content, and what is said of it, as JSON."""


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
        raise CheckpointError(f"{path} is corrupt or truncated ({reason(error)}); {remedy}") from None
    if header.keys() != {HEADER}:
        raise CheckpointError(f"{path} is no hydraprune checkpoint; load a foreign file with `--weights`")
    try:
        digest, text = json.loads(header[HEADER])
        intact = digest == _digest(tensors, text)
        meta = json.loads(text)
        refuse_endless(meta)
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
