"""From importance to what survives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hydraprune.core.errors import PruningError
from hydraprune.core.plain import tensors
from hydraprune.masks.budgets import Budget
from hydraprune.masks.coupling import ChannelSet, Coupling
from hydraprune.masks.source import selected
from hydraprune.masks.structures import Structure
from hydraprune.masks.topk import top_mask
from hydraprune.masks.view import MaskView


@dataclass(frozen=True)
class Selection:
    """Which groups survive in a model, once it is said how important they are.

    Attributes:
        view: the model's prunable weights.
        budget: how many groups each layer keeps.
        structure: what a group is; `structures` has it for each layer.
        each: name -> what each weight has of what the budget counts; None counts groups.
        coupling: the channels of the model, if groups are those.
    """

    view: MaskView
    budget: Budget
    structure: Structure
    each: Mapping[str, float] | None = None
    coupling: Coupling | None = None

    @cached_property
    def sets(self) -> tuple[ChannelSet, ...]:
        """Sets of coupled channels that can be removed, none of which an exempt layer makes or reads.

        Raises:
            PruningError: if there are none.
        """
        if self.coupling is None:
            return ()
        if found := self.coupling.removable(self.view.exempt):
            return found
        reasons = [f"those of {each.name!r}: {each.reason}" for each in self.coupling.sets if each.reason]
        raise PruningError(
            f"no channels of {type(self.view.model).__name__} can be removed, but by exempting fewer layers or with "
            f"another structure; {reasons[0] if reasons else 'it has none'}"
        )

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
        return budget.allocate(self.pooled(scores), shapes, self.costs(shapes))

    def pooled(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The importance (groups,) of the groups of each weight; or of each set of channels, by its name."""
        if self.coupling is None:
            return {name: self.structures[name].pool(score) for name, score in scores.items()}
        read = {name: self.structures[name].pool(scores[name]) for name in self.coupling.readers if name in scores}
        every = self.coupling.importance(read)
        return {each.name: every[each.channels.start : each.channels.stop] for each in self.sets}

    def masks(self, scores: dict[str, Tensor], sparsity: float | None = None) -> dict[str, Tensor]:
        """Name -> mask (bool, the weight's shape) of what survives."""
        keep = self.keep(scores, sparsity)
        if self.coupling is None:
            return {name: selected(score, keep[name], self.structures[name]) for name, score in scores.items()}
        stays = torch.ones(self.coupling.size, dtype=torch.bool)
        pooled = self.pooled(scores)
        for each in self.sets:
            kept, _ = top_mask(pooled[each.name], keep[each.name])
            stays[each.channels.start : each.channels.stop] = kept.cpu()
        return {n: self.coupling.mask(n, score.shape, stays).to(score.device) for n, score in scores.items()}

    def costs(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor] | None:
        """Name -> (groups,) what each group has of what the budget counts; None if it counts groups."""
        if self.each is None:
            return None
        return {name: self.each[name] * self.structures[name].sizes(shape) for name, shape in shapes.items()}


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
