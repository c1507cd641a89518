"""Magnitude pruning in steps: what the methods share whose sparsity grows while the stage trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar

from hydraprune.core.objective import Clock
from hydraprune.masks.budgets import Budget
from hydraprune.masks.source import MaskSource
from hydraprune.masks.structures import Structure
from hydraprune.pruners.base import Moving, dense, fixed
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.pruning import Pruning
from hydraprune.pruners.selection import masked_weights


class GrowingSparsity(Moving, ABC):
    """The smallest |weight| of those that remain go, step by step, until the budget is met."""

    spans: ClassVar[bool] = True

    @abstractmethod
    def level(self, clock: Clock, sparsity: float) -> float:
        """The sparsity by now, on the way to `sparsity`; it moves by jumps, and never falls."""

    def unfit(self, budget: Budget | None, structure: Structure) -> str | None:
        if budget is not None and budget.kind == "table":
            return f"pruner {self.kind!r} lets one sparsity grow, and budget 'table' has several; use another budget"
        return super().unfit(budget, structure)

    def begin(self, pruning: Pruning, probe: Probe) -> Mapping[str, MaskSource]:
        level = self.level(Clock(0, 1, 1), pruning.selection.budget.sparsity)
        if level == 0:
            return dense(pruning.view)
        return fixed(pruning.selection.masks(masked_weights(pruning.view), level))

    def step(self, pruning: Pruning) -> Iterator[None]:
        sparsity = pruning.selection.budget.sparsity
        earlier = self.level(pruning.clock, sparsity)
        yield
        if (level := self.level(pruning.clock, sparsity)) != earlier:
            self.remove(pruning, level)

    def remove(self, pruning: Pruning, sparsity: float) -> None:
        """Prune to `sparsity`."""
        pruning.move(pruning.selection.masks(masked_weights(pruning.view), sparsity))

    def finish(self, pruning: Pruning) -> None:
        self.remove(pruning, pruning.selection.budget.sparsity)
