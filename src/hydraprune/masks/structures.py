"""What is removed together: a structure pools the scores of a weight tensor into groups."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from torch import Tensor

from hydraprune.core.spec import Spec


class Structure(Spec, ABC):
    """Groups of weights that live and die together."""

    kind: str

    @abstractmethod
    def groups(self, shape: tuple[int, ...]) -> int:
        """How many groups a weight tensor of this shape has."""

    @abstractmethod
    def pool(self, score: Tensor) -> Tensor:
        """Importance (groups,), at least 0, of signed scores of the weight's shape."""

    @abstractmethod
    def expand(self, kept: Tensor, shape: tuple[int, ...]) -> Tensor:
        """(groups,) bool to a mask that broadcasts to the weight's shape."""


class Weight(Structure):
    """Single weights: each is a group of its own (unstructured pruning)."""

    kind: Literal["weight"] = "weight"

    def groups(self, shape: tuple[int, ...]) -> int:
        total = 1
        for side in shape:
            total *= side
        return total

    def pool(self, score: Tensor) -> Tensor:
        return score.detach().abs().flatten()

    def expand(self, kept: Tensor, shape: tuple[int, ...]) -> Tensor:
        return kept.view(shape)


class Filter(Structure):
    """Output filters: all weights that make one output channel; their importance is the mean of |score|."""

    kind: Literal["filter"] = "filter"

    def groups(self, shape: tuple[int, ...]) -> int:
        return shape[0]

    def pool(self, score: Tensor) -> Tensor:
        return score.detach().abs().flatten(1).mean(1)

    def expand(self, kept: Tensor, shape: tuple[int, ...]) -> Tensor:
        return kept.view(-1, *[1] * (len(shape) - 1)).expand(shape)
