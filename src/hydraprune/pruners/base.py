"""The contract of a pruning method, and the walk from scores to attached masks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hydraprune.core.hook import Hook
from hydraprune.core.spec import Spec
from hydraprune.masks.budgets import Budget
from hydraprune.masks.source import FixedMask, MaskSource, Over, selected
from hydraprune.masks.structures import Structure, Weight
from hydraprune.masks.view import MaskView
from hydraprune.pruners.probe import Probe


@dataclass(frozen=True)
class Selection:
    """Which groups survive in a model, once it is said how important they are.

    Attributes:
        view: the model's prunable weights.
        budget: how many groups each layer keeps.
        structure: what a group is.
    """

    view: MaskView
    budget: Budget
    structure: Structure

    def keep(self, scores: dict[str, Tensor], sparsity: float | None = None) -> dict[str, int]:
        """Groups that each weight keeps; `sparsity` in place of the budget's."""
        budget = self.budget if sparsity is None else self.budget.model_copy(update={"sparsity": sparsity})
        pooled = {name: self.structure.pool(score) for name, score in scores.items()}
        return budget.allocate(pooled, {name: tuple(score.shape) for name, score in scores.items()})

    def masks(self, scores: dict[str, Tensor], sparsity: float | None = None) -> dict[str, Tensor]:
        """Name -> mask (bool, the weight's shape) of what survives."""
        keep = self.keep(scores, sparsity)
        return {name: selected(score, keep[name], self.structure) for name, score in scores.items()}


class Process(Hook):
    """What a dynamic method does while a stage trains: it moves the masks that the pruner put on."""

    def finish(self) -> None:
        """After the last step of the stage: leave the masks, and weights, that the method has found."""


class Pruner(Spec, ABC):
    """Says how important each weight is. The most important groups of each layer stay.

    Attributes:
        over: what a stage with this pruner trains: `scores`, `weights` (and the masks move along), or None where the
            mask is fixed at once.
        anew: whether the method begins by drawing new weights.
    """

    kind: str
    over: ClassVar[Over | None] = None
    anew: ClassVar[bool] = False

    @abstractmethod
    def score(self, view: MaskView, probe: Probe) -> dict[str, Tensor]:
        """Signed scores of each prunable weight, in its shape; a larger |score| is more important."""

    def source(self, score: Tensor, keep: int, structure: Structure) -> MaskSource:
        """The mask that `keep` groups pass at the start: fixed, unless the method says otherwise."""
        return FixedMask(selected(score, keep, structure))

    def sources(self, selection: Selection, probe: Probe) -> dict[str, MaskSource]:
        """The mask of every prunable weight at the start of the stage."""
        scores = self.score(selection.view, probe)
        keep = selection.keep(scores)
        return {name: self.source(score, keep[name], selection.structure) for name, score in scores.items()}

    def process(self, selection: Selection, probe: Probe) -> Process | None:
        """What goes along with the stage's training, for a method whose masks move by rules of its own."""
        return None


def prune(
    view: MaskView,
    pruner: Pruner,
    budget: Budget,
    structure: Structure | None = None,
    probe: Probe | None = None,
) -> Process | None:
    """Score, pool, allocate, and attach a mask to every prunable weight of the view's model, in place.

    Args:
        view: the model's prunable weights.
        pruner: how important they are.
        budget: how many groups each layer keeps.
        structure: what a group is; single weights by default.
        probe: random numbers, and images for pruners that look at some; without images, seeded with 0 by default.

    Returns:
        For a dynamic pruner, what goes along with training: hand it to `fit` as the first hook and call `finish` on it
        after the last step. None for all others.

    Raises:
        PruningError: if the pruner needs what the probe lacks.
    """
    selection = Selection(view, budget, structure or Weight())
    probe = probe or Probe(torch.Generator(next(view.model.parameters()).device).manual_seed(0))
    view.attach(pruner.sources(selection, probe))
    return pruner.process(selection, probe)
