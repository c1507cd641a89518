"""What is removed together."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from hydraprune.masks.structures import Structure


class Kernel(Structure):
    """All weights from one input channel to one output channel."""

    kind: Literal["kernel"] = "kernel"

    def groups(self, shape: tuple[int, ...]) -> int:
        return shape[0] * shape[1]

    def pool(self, score: Tensor) -> Tensor:
        return score.detach().abs().reshape(self.groups(tuple(score.shape)), -1).mean(1)

    def expand(self, kept: Tensor, shape: tuple[int, ...]) -> Tensor:
        return kept.view(*shape[:2], *(1 for _ in shape[2:])).expand(shape)
