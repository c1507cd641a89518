"""A budget that counts something of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

from torch import Tensor

from hydraprune.masks.budgets import Threshold
from hydraprune.masks.view import MaskView


class Traffic(Threshold):
    """One threshold over all layers, where `sparsity` is the share of the bytes moved that is spared.

    Args:
        bytes: of a weight of a convolution; those of linear layers take 1.
    """

    kind: Literal["traffic"] = "traffic"
    counts: ClassVar[str] = "bytes"
    bytes: int = 4

    def costs(self, view: MaskView, images: Callable[[], Tensor]) -> Mapping[str, float]:
        return {name: self.bytes if weight.dim() > 2 else 1 for name, weight in view.weights().items()}
