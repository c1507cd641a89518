"""SNIP: what the loss would feel if a connection were cut (arXiv:1810.02340)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from hydraprune.masks.view import MaskView
from hydraprune.pruners.base import OneShot
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.selection import masked_weights


class SNIP(OneShot):
    """Connection sensitivity `|w * dL/dw|` (equation 6; its division by the sum changes no order and is left out).

    The paper takes the natural loss of one batch at initialisation, under one threshold over all layers (budget
    `global`). Here L is the stage's own objective: under a robust one, the attack runs on the dense network first. The
    ablation of arXiv:2002.10509 is this pruner in a stage of its own with `objective: {kind: natural}` and budget
    `uniform`.

    Args:
        batches: batches over which the gradient is averaged.

    Sample: `pruner: {kind: snip}` in a stage with `epochs: 0`
    """

    kind: Literal["snip"] = "snip"
    batches: int = Field(default=1, ge=1)

    def score(self, view: MaskView, probe: Probe) -> dict[str, Tensor]:
        gradients = probe.gradients(view.model, view.modules, self.batches)
        return {name: weight * gradients[name] for name, weight in masked_weights(view).items()}
