"""Tensors that are costly to make, kept on disk; `$HYDRAPRUNE_CACHE` or `~/.cache/hydraprune` holds them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


def cached(name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors stored as `name`, or those of `make()`, which are then stored. A damaged file is made anew."""
    file = Path(os.environ.get("HYDRAPRUNE_CACHE", "~/.cache/hydraprune")).expanduser() / f"{name}.safetensors"
    with suppress(OSError, SafetensorError):
        return load_file(file)
    tensors = make()
    # Where nothing can be stored (a full disk, a read-only home) the next run makes them again.
    with suppress(OSError, SafetensorError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
            save_file(tensors, Path(scratch) / file.name)
            os.replace(Path(scratch) / file.name, file)
    return tensors
