"""A pruner that says how important weights are."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from hydraprune.masks.view import MaskView
from hydraprune.pruners.base import OneShot
from hydraprune.pruners.probe import Probe


class Variance(OneShot):
    """What is far from the mean of its layer stays."""

    kind: Literal["variance"] = "variance"

    def score(self, view: MaskView, probe: Probe) -> dict[str, Tensor]:
        return {name: weight - weight.mean() for name, weight in view.weights().items()}
