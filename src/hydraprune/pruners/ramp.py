"""Magnitude pruning in steps: what the methods share whose sparsity grows while the stage trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from hydraprune.core.objective import Clock
from hydraprune.masks.budgets import Budget
from hydraprune.masks.source import FixedMask, MaskSource, Over
from hydraprune.masks.structures import Structure
from hydraprune.masks.view import MaskView
from hydraprune.pruners.base import Pruner, Selection, masked_weights
from hydraprune.pruners.moving import Moving, before, dense
from hydraprune.pruners.probe import Probe


class Ramp(Pruner, ABC):
    """The smallest |weight| of those that remain go, step by step, until the budget is met."""

    over: ClassVar[Over] = "weights"

    @abstractmethod
    def level(self, clock: Clock, sparsity: float) -> float:
        """The sparsity by now, on the way to `sparsity`; it moves by jumps, and never falls."""

    def unfit(self, budget: Budget | None, structure: Structure) -> str | None:
        if budget is not None and budget.kind == "table":
            return f"pruner {self.kind!r} lets one sparsity grow, and budget 'table' has several; use another budget"
        return super().unfit(budget, structure)

    def score(self, view: MaskView, probe: Probe) -> dict[str, Tensor]:
        return masked_weights(view)

    def sources(self, selection: Selection, probe: Probe) -> dict[str, MaskSource]:
        level = self.level(Clock(0, 1, 1), selection.budget.sparsity)
        if level == 0:
            return dense(selection.view)
        masks = selection.masks(self.score(selection.view, probe), level)
        return {name: FixedMask(mask) for name, mask in masks.items()}

    def process(self, selection: Selection, probe: Probe) -> Removal:
        return Removal(selection, self)


class Removal(Moving):
    """Follows the sparsity of a ramp."""

    def __init__(self, selection: Selection, ramp: Ramp) -> None:
        super().__init__(selection)
        self.ramp = ramp

    def on_step(self, clock: Clock, images: int, loss: float) -> None:
        level, earlier = (self.ramp.level(c, self.selection.budget.sparsity) for c in (clock, before(clock)))
        if level != earlier:
            self.remove(level)

    def remove(self, sparsity: float) -> None:
        """Prune to `sparsity`."""
        self.move(self.selection.masks(masked_weights(self.view), sparsity))

    def finish(self) -> None:
        self.remove(self.selection.budget.sparsity)
