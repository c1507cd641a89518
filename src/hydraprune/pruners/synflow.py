"""SynFlow: pruning without data that never cuts a network in two (arXiv:2006.05467)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hydraprune.core.plain import plain_copy
from hydraprune.masks.view import MaskView
from hydraprune.pruners.base import OneShot
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.selection import Selection


def _positive(model: nn.Module) -> nn.Module:
    """A plain copy in float64 and evaluation mode whose parameters and buffers are not negative.

    The running means of norm layers become 0, which they are at initialisation: |mean| would be subtracted.
    """
    plain = plain_copy(model).double().eval().requires_grad_(False)
    for tensor in plain.state_dict().values():
        if tensor.is_floating_point():
            tensor.abs_()
    for module in plain.modules():
        mean = getattr(module, "running_mean", None)
        if mean is not None:
            mean.zero_()
    return plain


class SynFlow(OneShot):
    """Synaptic flow `w * dR/dw`, where R is the summed output for an image of ones under |weights| (equation 3).

    The network is pruned in rounds, to density `density^(i / rounds)` in round i, and scored anew in each (algorithm
    1; budget `global`). It looks at the shape of an image and at no data, so robustness enters in training alone.

    Args:
        rounds: how often it is scored and pruned.

    Sample: `pruner: {kind: synflow}` in a stage with `epochs: 0`
    """

    kind: Literal["synflow"] = "synflow"
    rounds: int = Field(default=100, ge=1)

    def score(self, view: MaskView, probe: Probe) -> dict[str, Tensor]:
        return self._flow(_positive(view.model), list(view.modules), probe)

    def select(self, selection: Selection, probe: Probe) -> dict[str, Tensor]:
        names, net = list(selection.view.modules), _positive(selection.view.model)
        for number in range(1, self.rounds + 1):
            share = 1 - (1 - selection.budget.sparsity) ** (number / self.rounds)
            masks = selection.masks(self._flow(net, names, probe), share if number < self.rounds else None)
            for name, mask in masks.items():
                net.get_parameter(name).detach().mul_(mask)
        return masks

    def _flow(self, net: nn.Module, names: list[str], probe: Probe) -> dict[str, Tensor]:
        weights = [net.get_parameter(name).requires_grad_() for name in names]
        flow = net(torch.ones_like(probe.images()[:1], dtype=torch.float64)).sum()
        gradients = torch.autograd.grad(flow, weights, materialize_grads=True)
        return {name: w.detach() * g for name, w, g in zip(names, weights, gradients, strict=True)}
