"""The structure that another method found, trained from scratch (Liu et al., arXiv:1810.05270)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from hydraprune.core.plain import canonical, plain_copy
from hydraprune.masks.view import MaskView
from hydraprune.pruners.base import OneShot
from hydraprune.pruners.moving import drawn
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.selection import Selection, masked_weights


class Scratch(OneShot):
    """Keeps the masks that are there and draws every parameter anew (arXiv:1810.05270, section 3).

    With the budget and structure of the stage that found the masks they stay the same; under a smaller budget the
    smallest |weight| of them go. Each layer is drawn as torch draws it by default.

    Sample: `pruner: {kind: scratch}` in a stage with `epochs: 0`, before one over weights
    """

    kind: Literal["scratch"] = "scratch"

    @property
    def redraws(self) -> bool:
        return True

    def score(self, view: MaskView, probe: Probe) -> dict[str, Tensor]:
        return masked_weights(view)

    def select(self, selection: Selection, probe: Probe) -> dict[str, Tensor]:
        found = super().select(selection, probe)
        redraw(selection.view.model, int(drawn(probe.rng)))
        return found


@torch.no_grad()
def redraw(model: nn.Module, seed: int) -> None:
    """Reset the parameters and norm statistics of every layer, in place; on every machine they are the same."""
    plain = plain_copy(model).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for module in plain.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    fresh = plain.state_dict()
    for name, tensor in model.state_dict().items():
        if canonical(name) in fresh:
            tensor.copy_(fresh[canonical(name)])
