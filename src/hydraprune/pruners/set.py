"""Sparse evolutionary training (Mocanu et al., arXiv:1707.04780)."""

from __future__ import annotations

from typing import ClassVar, Literal

from hydraprune.pruners.regrow import Regrow


class SET(Regrow):
    """Drops the smallest weights and grows as many connections at random (arXiv:1707.04780, algorithm 1).

    Sample: `pruner: {kind: set}` with `budget: {kind: erk, sparsity: 0.9}` in a stage over weights
    """

    kind: Literal["set"] = "set"
    growth: ClassVar[Literal["random", "gradient"]] = "random"

    def replaced(self, time: float) -> float:
        return self.drop
