"""What a figure depends on, as one short text: a figure is reused only where its fingerprint is the same."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

LENGTH = 16
"""Hexadecimal digits: 64 bits, which tell apart all that a project will ever measure."""


def fingerprint(**parts: Any) -> str:
    """A hexadecimal name for `parts`, JSON-ready values; equal parts have equal names, in any order.

    Raises:
        TypeError: for a part that JSON cannot hold.
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True, allow_nan=False).encode()).hexdigest()[:LENGTH]


def content(*tensors: Tensor) -> str:
    """A hexadecimal name for the types, shapes and values of tensors on any device."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()[:LENGTH]
