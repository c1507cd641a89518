"""LAMP: magnitudes that can be compared over layers (arXiv:2010.07611)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from hydraprune.masks.view import MaskView
from hydraprune.pruners.base import OneShot
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.selection import masked_weights


def _lamp(weight: Tensor) -> Tensor:
    """Each squared weight as a share of the squared weights of its layer that are not smaller."""
    squares, order = weight.double().square().flatten().sort()
    rest = squares.flip(0).cumsum(0).flip(0)
    return torch.zeros_like(squares).index_copy(0, order, squares / rest.clamp_min(1e-300)).view(weight.shape)


class LAMPScores(OneShot):
    """`w^2` over the sum of `v^2` of the weights v of the layer that are at least as large (equation 4).

    The order within a layer is that of magnitude, so it differs from magnitude pruning where the layers share one
    threshold: use it with budget `global`, as the paper does. Among equal weights the later counts as larger.

    Sample: `pruner: {kind: lamp}` with `budget: {kind: global, sparsity: 0.9}`, in a stage with `epochs: 0`
    """

    kind: Literal["lamp"] = "lamp"

    def score(self, view: MaskView, probe: Probe) -> dict[str, Tensor]:
        return {name: _lamp(weight) for name, weight in masked_weights(view).items()}
