"""The contract of a pruning method, and the walk from scores to attached masks."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from hydraprune.core.spec import Spec
from hydraprune.masks.budgets import Budget
from hydraprune.masks.source import FixedMask, MaskSource, selected
from hydraprune.masks.structures import Structure, Weight
from hydraprune.masks.view import MaskView


class Pruner(Spec, ABC):
    """Says how important each weight is. The most important groups of each layer stay."""

    kind: str

    @property
    def learns(self) -> bool:
        """Whether training over scores moves the mask; if not, the mask is fixed at once."""
        return False

    @abstractmethod
    def score(self, view: MaskView, rng: torch.Generator) -> dict[str, Tensor]:
        """Signed scores of each prunable weight, in its shape; a larger |score| is more important."""

    def source(self, score: Tensor, keep: int, structure: Structure) -> MaskSource:
        """The mask that `keep` groups pass: fixed, unless the method learns."""
        return FixedMask(selected(score, keep, structure))


def prune(
    view: MaskView,
    pruner: Pruner,
    budget: Budget,
    structure: Structure | None = None,
    rng: torch.Generator | None = None,
) -> None:
    """Score, pool, allocate, and attach a mask to every prunable weight of the view's model, in place.

    Args:
        view: the model's prunable weights.
        pruner: how important they are.
        budget: how many groups each layer keeps.
        structure: what a group is; single weights by default.
        rng: random numbers, on the device of the weights; seeded with 0 by default.
    """
    structure = structure or Weight()
    scores = pruner.score(view, rng or torch.Generator(next(view.model.parameters()).device).manual_seed(0))
    pooled = {name: structure.pool(score) for name, score in scores.items()}
    kept = budget.allocate(pooled, {name: tuple(score.shape) for name, score in scores.items()})
    view.attach({name: pruner.source(score, kept[name], structure) for name, score in scores.items()})
