"""Random numbers for libraries that take them from torch's global generators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(rng: torch.Generator) -> Iterator[int]:
    """Inside, the global generators are seeded with a number drawn from `rng`, the value; then they are restored."""
    seed = int(torch.randint(2**31, (), generator=rng, device=rng.device))
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(cuda)):
        torch.manual_seed(seed)
        yield seed
