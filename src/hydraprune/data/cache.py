"""What is costly to make, kept on disk; `$HYDRAPRUNE_CACHE` or `~/.cache/hydraprune` holds it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from hydraprune.core.errors import DataError, HydrapruneError
from hydraprune.core.fingerprint import fingerprint
from hydraprune.core.tensors import load_tensors, save_tensors


def cache_folder() -> Path:
    """Where to keep what is costly to make or to fetch."""
    return Path(os.environ.get("HYDRAPRUNE_CACHE", "~/.cache/hydraprune")).expanduser()


def cached(name: str, make: Callable[[], dict[str, Tensor]], kinds: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
    """The tensors stored as `name`, or those of `make()`, which are then stored.

    The file has a checksum: one that is damaged, or holds others than tensors of these `kinds` and of one length, is
    made anew.
    """
    file = cache_folder() / f"{name}.safetensors"
    with suppress(HydrapruneError):
        held, _ = load_tensors(file)
        lengths = {tuple(tensor.shape[:1]) for tensor in held.values()}
        if {key: tensor.dtype for key, tensor in held.items()} == kinds and len(lengths) == 1 and lengths != {(0,)}:
            return held
    tensors = make()
    # Where nothing can be stored (a full disk, a read-only home) the next run makes them again.
    with suppress(HydrapruneError):
        save_tensors(file, tensors, {})
    return tensors


def digest_of(files: Iterable[str | Path]) -> str:
    """A hexadecimal name for the content of `files`, in their order.

    Raises:
        DataError: if one cannot be read.
    """
    with ThreadPoolExecutor() as threads:  # hashing lets other threads run
        return hashlib.sha256(b"".join(threads.map(_digest, files))).hexdigest()[:16]


def files_digest(files: Sequence[str]) -> str:
    """`digest_of` many or large files; they are read again only when one has another size or time of change."""
    try:
        looks = [(file, look.st_size, look.st_mtime_ns) for file in files for look in [os.stat(file)]]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}); restore it or take it out") from None

    def read() -> dict[str, Tensor]:
        return {"digest": torch.tensor([*bytes.fromhex(digest_of(files))], dtype=torch.uint8)}

    held = cached(f"files-{fingerprint(looks=looks)}", read, {"digest": torch.uint8})
    return bytes(held["digest"].tolist()).hex()


def _digest(file: str | Path) -> bytes:
    try:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}); restore it or take it out") from None
