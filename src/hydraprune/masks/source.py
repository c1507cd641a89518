"""The parametrizations that put a mask between a stored weight and the weight that a layer uses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from hydraprune.core.errors import PruningError
from hydraprune.masks.structures import Structure
from hydraprune.masks.topk import Passing, SharedRate, StraightThrough, top_mask

Over = Literal["weights", "scores"]
"""What a stage of training moves."""


class MaskSource(nn.Module, ABC):
    """Turns a stored weight into the masked one.

    Attributes:
        over: the kind of stage that trains the parameters of the source, if it has any.
    """

    over: ClassVar[Over] = "scores"

    @abstractmethod
    def current(self) -> Tensor:
        """The mask in force: bool, the weight's shape."""

    def settled(self, weight: Tensor) -> Tensor:
        """The stored weight that, under a fixed mask of what is in force, acts as `weight` does here."""
        return weight


class FixedMask(MaskSource):
    """`weight * mask`, the mask (bool, the weight's shape) never moving by itself: pruned weights get no gradient."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask

    def current(self) -> Tensor:
        return self.mask


class PassingMask(FixedMask):
    """`weight * mask` whose gradient passes the mask: pruned weights get the one that they would have if kept."""

    def forward(self, weight: Tensor) -> Tensor:
        return Passing.apply(weight, self.mask)


class LearnedMask(MaskSource):
    """`weight * mask`, the mask keeping the `keep` groups whose |score| is largest, the scores being trainable.

    The mask is selected anew each time that it is asked for; `core.plain.once` makes that once per optimizer step.
    Gradients reach the scores straight through the selection.
    """

    def __init__(self, score: Tensor, keep: int, structure: Structure, *, sort_ties: bool = False) -> None:
        super().__init__()
        self.score = nn.Parameter(score.detach().clone())
        self.keep = keep
        self.structure = structure
        self.sort_ties = sort_ties
        self._near: float | None = None

    def current(self) -> Tensor:
        kept, self._near = top_mask(self.structure.pool(self.score), self.keep, self._near, sort_ties=self.sort_ties)
        return self.structure.expand(kept, tuple(self.score.shape))

    def forward(self, weight: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            raise PruningError(
                "a mask that is still learned cannot be exported, as it is selected anew in each pass; call "
                "MaskView(model).freeze() first, or export MaskView(model).bake()"
            )
        return StraightThrough.apply(weight, self.score, self.current())


class LearnedRate(LearnedMask):
    """A learned mask whose share `least + (1 - least) * sigmoid(rate)` of kept groups is learned as well.

    With G the gradient at the masked weight, the share gets the sum of `G * weight` over all entries, kept or not.
    """

    def __init__(self, score: Tensor, share: float, least: float, structure: Structure) -> None:
        super().__init__(score, 0, structure)
        self.least = least
        self.groups = structure.groups(tuple(score.shape))
        inner = min(0.99, max(0.01, (share - least) / (1 - least))) if least < 1 else 0.5
        self.rate = nn.Parameter(torch.tensor(inner, device=score.device).logit())

    def share(self) -> Tensor:
        """The share of groups that stays, a scalar with gradient."""
        return self.least + (1 - self.least) * self.rate.sigmoid()

    def current(self) -> Tensor:
        self.keep = max(1, self.groups - int((1 - float(self.share().detach())) * self.groups))
        return super().current()

    def forward(self, weight: Tensor) -> Tensor:
        masked: Tensor = SharedRate.apply(super().forward(weight), weight, self.share())
        return masked


def selected(score: Tensor, keep: int, structure: Structure) -> Tensor:
    """The mask (the score's shape) that keeps the `keep` most important groups."""
    kept, _ = top_mask(structure.pool(score), keep)
    return structure.expand(kept, tuple(score.shape)).contiguous()


@torch.no_grad()
def frozen(source: MaskSource) -> FixedMask:
    """A mask that stays what `source` selects now."""
    return FixedMask(source.current().contiguous())
