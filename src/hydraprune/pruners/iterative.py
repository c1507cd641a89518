"""Iterative magnitude pruning: prune a little, fine-tune, and again (arXiv:1506.02626)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hydraprune.core.objective import Clock
from hydraprune.pruners.growing import GrowingSparsity
from hydraprune.pruners.moving import moments


class Iterative(GrowingSparsity):
    """Rounds of pruning and fine-tuning; each removes the same share of what remains (arXiv:1506.02626, section 3).

    The first round prunes at once, so the stage should start from a trained network.

    Args:
        rounds: how many, equally long.

    Sample: `pruner: {kind: iterative, rounds: 5}` in a stage over weights
    """

    kind: Literal["iterative"] = "iterative"
    rounds: int = Field(default=5, ge=1)

    def level(self, clock: Clock, sparsity: float) -> float:
        done = min(self.rounds, 1 + moments(clock, self.rounds))
        return in_rounds(sparsity, done, self.rounds)


def in_rounds(sparsity: float, done: int, rounds: int) -> float:
    """The sparsity after `done` of `rounds` rounds that each remove the same share of what remains."""
    return sparsity if done == rounds else 1 - (1 - sparsity) ** (done / rounds)
