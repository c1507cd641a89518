"""Seeds from a seed: whatever draws random numbers says what for, and draws the same whenever it is asked again."""

from __future__ import annotations

import zlib

import numpy as np
import torch

from hydraprune.core.spec import whole

DERIVATION = 2
"""Which numbers follow from a seed: part of the fingerprint of every figure that depends on one."""


def derived(seed: int, *parts: int | str) -> int:
    """A seed for one purpose, named by `parts`: a word, an epoch, a batch, an image.

    32 bits, as torch ignores the rest on a CPU. Parts of 0 at the end count for nothing.

    Raises:
        SpecError: unless the numbers are whole and at least 0.
    """
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else whole(part, "seed") for part in (seed, *parts)]
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def generator(seed: int, *parts: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """Random numbers for one purpose, as `derived` names it."""
    return torch.Generator(device).manual_seed(derived(seed, *parts))
