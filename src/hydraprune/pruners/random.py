"""Random pruning: the floor that every method must clear."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from hydraprune.masks.view import MaskView
from hydraprune.pruners.base import OneShot
from hydraprune.pruners.probe import Probe


class Random(OneShot):
    """Connections drawn at random, each with the same chance.

    Sample: `pruner: {kind: random}` in a stage with `epochs: 0`
    """

    kind: Literal["random"] = "random"

    def score(self, view: MaskView, probe: Probe) -> dict[str, Tensor]:
        return {
            name: torch.rand(weight.shape, generator=probe.rng, device=weight.device)
            for name, weight in view.weights().items()
        }
