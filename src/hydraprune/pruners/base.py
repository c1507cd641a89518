"""What a pruning method must say: three kinds, by what trains while the masks are found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, final

import torch
from torch import Tensor

from hydraprune.core.spec import Spec
from hydraprune.masks.budgets import Budget
from hydraprune.masks.source import FixedMask, LearnedMask, MaskSource, Over, PassingMask
from hydraprune.masks.structures import Structure
from hydraprune.masks.view import MaskView
from hydraprune.pruners import PRUNERS
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.selection import Selection

if TYPE_CHECKING:
    from hydraprune.pruners.pruning import Pruning


class Pruner(Spec, ABC):
    """A pruning method: `OneShot`, `Learned` or `Moving`.

    It is a frozen spec. What it must remember goes into `pruning.memory`, as tensors, which are saved with training and
    taken up again; what is found again from these may lie in `pruning.cache`. Where not said otherwise, everything here
    is called without gradients.

    Attributes:
        over: what trains while the masks are found: `scores`, `weights`, or None where they are fixed at once.
        spans: whether it leaves all masks to the selection, so that groups may reach over layers.
    """

    kind: str
    over: ClassVar[Over | None] = None
    spans: ClassVar[bool] = False

    @property
    def paced(self) -> bool:
        """Whether it acts by how much of the stage is over, so that only the last step has the masks asked for."""
        return False

    @property
    def redraws(self) -> bool:
        """Whether it begins by drawing new weights."""
        return False

    def unfit(self, budget: Budget | None, structure: Structure) -> str | None:
        """Why this pruner, budget and structure do not go together; None if they do."""
        if structure.spans and not self.spans:
            able = ", ".join(name for name in PRUNERS.names() if PRUNERS.get(name).spans)
            return (
                f"pruner {self.kind!r} chooses in each layer by itself, and structure {structure.kind!r} reaches over "
                f"layers; use {able}"
            )
        if structure.spans and budget is not None and budget.counts != "groups":
            return (
                f"budget {budget.kind!r} counts {budget.counts}, of which structure {structure.kind!r} gives each to "
                "two groups; use another budget, such as uniform"
            )
        if (budget is None) != (structure.sparsity is None):
            return None
        if budget is None:
            return "a pruner needs a budget, such as {kind: uniform, sparsity: 0.9}"
        return (
            f"structure {structure.kind!r} says itself how many weights stay, so budget {budget.kind!r} does not "
            "apply; remove it"
        )

    @abstractmethod
    def begin(self, pruning: Pruning, probe: Probe) -> Mapping[str, MaskSource]:
        """The mask of every prunable weight before the first step; called once, with gradients on."""

    def ready(self, pruning: Pruning) -> None:
        """Before the first step, and before the next one of a training that goes on."""

    def step(self, pruning: Pruning) -> Iterator[None]:
        """One step: what comes before `yield` sees the gradients, and may change them; the rest sees the new weights.

        `pruning.clock` counts the step behind the `yield`.
        """
        yield

    def after_epoch(self, pruning: Pruning, metrics: dict[str, float]) -> None:
        """After an epoch; what is added to `metrics` goes into the history."""

    def measured(self, pruning: Pruning, metrics: Mapping[str, float]) -> None:
        """Later, when others have added to `metrics` what they measured after the epoch, such as validation."""

    def finish(self, pruning: Pruning) -> None:
        """After the last step: leave the masks, and weights, that were found."""


class OneShot(Pruner, ABC):
    """Says how important each weight is, and the most important groups stay."""

    spans: ClassVar[bool] = True

    @abstractmethod
    def score(self, view: MaskView, probe: Probe) -> dict[str, Tensor]:
        """Signed scores of each prunable weight, in its shape; a larger |score| is more important."""

    def select(self, selection: Selection, probe: Probe) -> dict[str, Tensor]:
        """Name -> mask (bool, the weight's shape) of what stays."""
        return selection.masks(self.score(selection.view, probe))

    @final
    def begin(self, pruning: Pruning, probe: Probe) -> Mapping[str, MaskSource]:
        return fixed(self.select(pruning.selection, probe))


class Learned(Pruner, ABC):
    """The scores are trained, straight through the selection, and the weights stay as they are."""

    over: ClassVar[Over | None] = "scores"

    @abstractmethod
    def score(self, view: MaskView, probe: Probe) -> dict[str, Tensor]:
        """The scores that training starts from, each in the shape of its weight."""

    def mask(self, score: Tensor, keep: int, structure: Structure) -> LearnedMask:
        """The mask that `keep` groups pass."""
        return LearnedMask(score, keep, structure)

    def begin(self, pruning: Pruning, probe: Probe) -> Mapping[str, MaskSource]:
        scores, structures = self.score(pruning.view, probe), pruning.selection.structures
        pruning.keep = keep = pruning.selection.keep(scores)
        return {name: self.mask(score, keep[name], structures[name]) for name, score in scores.items()}

    def ready(self, pruning: Pruning) -> None:
        keep = pruning.keep
        for name, source in pruning.view.sources.items():
            if isinstance(source, LearnedMask):
                source.keep = keep[name]


class Moving(Pruner, ABC):
    """The weights are trained, and the masks move by rules of the method's own."""

    over: ClassVar[Over | None] = "weights"

    @property
    def paced(self) -> bool:
        return True

    @abstractmethod
    def step(self, pruning: Pruning) -> Iterator[None]:
        """One step, as above; every method has its own."""


def fixed(masks: Mapping[str, Tensor]) -> dict[str, MaskSource]:
    """Masks that move when they are told to, and let no gradient through to what they remove."""
    return {name: FixedMask(mask) for name, mask in masks.items()}


def passing(masks: Mapping[str, Tensor]) -> dict[str, MaskSource]:
    """Such masks that let gradients through, so that what they remove may come back."""
    return {name: PassingMask(mask) for name, mask in masks.items()}


def dense(view: MaskView) -> dict[str, MaskSource]:
    """Fixed masks that keep everything."""
    return fixed({name: torch.ones_like(weight, dtype=torch.bool) for name, weight in view.weights().items()})
