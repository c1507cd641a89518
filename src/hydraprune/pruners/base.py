"""The contract of a pruning method, and the walk from scores to attached masks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hydraprune.core.errors import PruningError
from hydraprune.core.hook import Hook
from hydraprune.core.network import device_of
from hydraprune.core.plain import tensors, values_on_failure
from hydraprune.core.spec import Spec
from hydraprune.masks import BUDGETS, STRUCTURES
from hydraprune.masks.budgets import Budget, Uniform
from hydraprune.masks.macs import macs_per_weight
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
        structure: what a group is; `structures` has it for each layer.
        macs: name -> multiplications of each weight for one image, for a budget that counts them.
    """

    view: MaskView
    budget: Budget
    structure: Structure
    macs: Mapping[str, int] | None = None

    @cached_property
    def structures(self) -> dict[str, Structure]:
        """What a group of each prunable weight is."""
        return {name: self.structure.on(module) for name, (module, *_) in self.view.modules.items()}

    def keep(self, scores: dict[str, Tensor], sparsity: float | None = None) -> dict[str, int]:
        """Groups that each weight keeps; `sparsity` in place of the budget's."""
        shapes = {name: tuple(score.shape) for name, score in scores.items()}
        decided = {name: self.structures[name].decided(shape) for name, shape in shapes.items()}
        own = {name: keep for name, keep in decided.items() if keep is not None}
        if own:
            return own
        budget = self.budget if sparsity is None else self.budget.model_copy(update={"sparsity": sparsity})
        pooled = {name: self.structures[name].pool(score) for name, score in scores.items()}
        return budget.allocate(pooled, shapes, self.costs(shapes))

    def masks(self, scores: dict[str, Tensor], sparsity: float | None = None) -> dict[str, Tensor]:
        """Name -> mask (bool, the weight's shape) of what survives."""
        keep = self.keep(scores, sparsity)
        return {name: selected(score, keep[name], self.structures[name]) for name, score in scores.items()}

    def costs(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor] | None:
        """Name -> (groups,) what each group has of what the budget counts; None if it counts groups."""
        if self.budget.counts == "groups":
            return None
        each = self.macs or dict.fromkeys(shapes, 1)
        return {name: each[name] * self.structures[name].sizes(shape) for name, shape in shapes.items()}


def masked_weights(view: MaskView) -> dict[str, Tensor]:
    """The prunable weights as the network uses them: what an earlier mask removed is zero."""
    acting = tensors(view.model)
    return {name: acting[name] for name in view.modules}


def lifted(signed: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scores above 0 in the order of signed ones; a weight that is zero already scores 0."""
    # In float64, so that the shift merges no two scores.
    least = torch.stack([part.min() for part in signed.values()]).min().double()
    tiny = torch.finfo(torch.float64).tiny
    return {name: (part.double() - least + tiny) * (weights[name] != 0) for name, part in signed.items()}


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
    family: ClassVar[str]
    """TODO at the merge."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        cls.family = {None: "one-shot", "scores": "learned", "weights": "moving"}[cls.over]

    @property
    def dynamic(self) -> bool:
        """Whether something goes along with training, so that the last epoch alone has the masks asked for."""
        return type(self).process is not Pruner.process

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
        return {name: self.source(score, keep[name], selection.structures[name]) for name, score in scores.items()}

    def unfit(self, budget: Budget | None, structure: Structure) -> str | None:
        """Why this pruner, budget and structure do not go together; None if they do."""
        if (budget is None) != (structure.sparsity is None):
            return None
        if budget is None:
            return "a pruner needs a budget, such as {kind: uniform, sparsity: 0.9}"
        return (
            f"structure {structure.kind!r} says itself how many weights stay, so budget {budget.kind!r} does not "
            "apply; remove it"
        )

    def process(self, selection: Selection, probe: Probe) -> Process | None:
        """What goes along with the stage's training, for a method whose masks move by rules of its own."""
        return None


Named = str | Mapping[str, Any]
"""The name of a method, or its name and settings: `{"kind": "hydra", "gradual": 2}`."""


def prune(
    view: MaskView | nn.Module,
    pruner: Pruner | Named,
    budget: Budget | Named | float | None = None,
    structure: Structure | Named | None = None,
    probe: Probe | None = None,
) -> Process | None:
    """Score, pool, allocate, and attach a mask to every prunable weight of the view's model, in place.

    Args:
        view: the model's prunable weights, or the model, of which none is exempt then.
        pruner: how important they are; a method, its name, or its name and settings, as for the next two.
        budget: how many groups each layer keeps; a number is the sparsity of every layer, in [0, 1); None for a
            structure that says so itself.
        structure: what a group is; single weights by default.
        probe: random numbers, and images for pruners that look at some; without images, seeded with 0 by default.

    Returns:
        For a dynamic pruner, what goes along with training: hand it to `fit` as the first hook and call `finish` on it
        after the last step. None for all others.

    Raises:
        SpecError: for an argument that cannot be used, such as an unknown pruner.
        DataError: for images of the probe that the network does not take.
        PruningError: if the pruner or the budget needs what the probe lacks, or budget and structure do not fit.
    """
    from hydraprune.pruners import PRUNERS  # which is a table of the pruners that are made of this file

    view = view if isinstance(view, MaskView) else MaskView(view)
    device = device_of(view.model)
    pruner = PRUNERS.make(pruner, "pruner")
    structure = Weight() if structure is None else STRUCTURES.make(structure, "structure")
    if isinstance(budget, int | float) and not isinstance(budget, bool):
        budget = Uniform(sparsity=budget)
    elif budget is not None:
        budget = BUDGETS.make(budget, "budget")
    if reason := pruner.unfit(budget, structure):
        raise PruningError(reason)
    budget = budget or Uniform(sparsity=structure.sparsity)
    probe = probe or Probe(torch.Generator(device).manual_seed(0))
    probe.try_on(view.model)
    macs = macs_per_weight(view, probe.images()) if budget.counts == "macs" else None
    selection = Selection(view, budget, structure, macs)
    with values_on_failure(view.model):  # some methods draw new weights first
        sources = pruner.sources(selection, probe)
    view.attach(sources)
    return pruner.process(selection, probe)
