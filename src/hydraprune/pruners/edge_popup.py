"""Edge-popup: find a robust network inside a random one that is never trained (arXiv:1911.13299)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from hydraprune.masks.source import MaskSource
from hydraprune.masks.view import MaskView
from hydraprune.pruners.base import Learned
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.pruning import Pruning


class EdgePopup(Learned):
    """Learned scores over fresh random weights; with a robust objective, robust scratch tickets (arXiv:2110.14068).

    The weights of the prunable layers are drawn anew and stay as they are; scores start as `U(-1, 1) / sqrt(fan_in)`
    and are trained as HYDRA's are. The tickets are searched without scale and shift in norm layers
    (`train_norm: false` in a stage that starts from the net of the recipe) and with weight decay 5e-4 on the scores.

    Args:
        weights: `signed_constant` draws `+-sqrt(2 / fan_in)`, `kaiming_normal` a Gaussian of that deviation.

    Sample: `pruner: {kind: edge-popup}` in a first stage over scores
    """

    kind: Literal["edge-popup"] = "edge-popup"
    weights: Literal["signed_constant", "kaiming_normal"] = "signed_constant"

    @property
    def redraws(self) -> bool:
        return True

    def score(self, view: MaskView, probe: Probe) -> dict[str, Tensor]:
        return {
            name: torch.nn.init.kaiming_uniform_(torch.empty_like(weight), math.sqrt(5), generator=probe.rng)
            for name, weight in view.weights().items()
        }

    def begin(self, pruning: Pruning, probe: Probe) -> Mapping[str, MaskSource]:
        for weight in pruning.view.weights().values():
            deviation = math.sqrt(2 / weight[0].numel())
            weight.normal_(generator=probe.rng)
            weight.copy_(deviation * (weight.sign() if self.weights == "signed_constant" else weight))
        return super().begin(pruning, probe)
