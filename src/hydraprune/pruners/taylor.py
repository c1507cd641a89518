"""Taylor expansion: the change of the loss that the removal of a weight makes (arXiv:1906.10771)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from hydraprune.masks.view import MaskView
from hydraprune.pruners.base import OneShot
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.selection import masked_weights


class Taylor(OneShot):
    """First-order saliency `(w * dL/dw)^2`, or `|w * dL/dw|`, the mean over batches (equations 6 and 8).

    The absolute value or square is taken in each batch, so that gradients of a trained network, which cancel over
    batches, still count. L is the stage's own objective; the paper's is the natural loss.

    Args:
        batches: batches that are averaged over.
        squared: square the product; otherwise its absolute value is taken.

    Sample: `pruner: {kind: taylor}` in a stage with `epochs: 0`
    """

    kind: Literal["taylor"] = "taylor"
    batches: int = Field(default=10, ge=1)
    squared: bool = True

    def score(self, view: MaskView, probe: Probe) -> dict[str, Tensor]:
        weights = masked_weights(view)
        total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        count = 0
        for gradients in probe.slopes(view.model, weights, self.batches):
            count += 1
            for name, weight in weights.items():
                change = weight * gradients[name]
                total[name] += change.square() if self.squared else change.abs()
        return {name: value / count for name, value in total.items()}
