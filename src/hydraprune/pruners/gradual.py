"""Gradual magnitude pruning (arXiv:1710.01878)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hydraprune.core.objective import Clock
from hydraprune.core.spec import Number
from hydraprune.pruners.growing import GrowingSparsity
from hydraprune.pruners.moving import moments


class Gradual(GrowingSparsity):
    """Sparsity grows as `s * (1 - (1 - t)^3)`, fast at first, while the weights train (arXiv:1710.01878, equation 1).

    Unlike there, what is pruned never comes back.

    Args:
        updates: how often weights are removed, evenly spaced.
        until: share of the stage after which the sparsity is reached; the rest trains the survivors.

    Sample: `pruner: {kind: gradual}` in a stage over weights
    """

    kind: Literal["gradual"] = "gradual"
    updates: int = Field(default=100, ge=1)
    until: Number = Field(default=0.75, gt=0, le=1)

    def level(self, clock: Clock, sparsity: float) -> float:
        return sparsity * (1 - (1 - moments(clock, self.updates, self.until) / self.updates) ** 3)
