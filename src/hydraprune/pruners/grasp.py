"""GraSP: keep the connections that gradient flow needs (arXiv:2002.07376)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hydraprune.core.plain import plain_copy
from hydraprune.core.spec import Number
from hydraprune.masks.view import MaskView
from hydraprune.pruners.base import OneShot
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.selection import lifted


class _Cooled(nn.Module):
    """`net` with its logits divided by `temperature`."""

    def __init__(self, net: nn.Module, temperature: float) -> None:
        super().__init__()
        self.net, self.temperature = net, temperature

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) / self.temperature


class GraSP(OneShot):
    """`-w * (H g)` with gradient g and Hessian H of the loss; the connections where it is highest are removed (eq. 8).

    The loss is the stage's own objective at logits divided by `temperature`; adversarial examples stay what they are
    while it is differentiated twice. The paper prunes at initialisation, under one threshold over all layers (budget
    `global`), with about 10 images of each class. Removed is what helps gradient flow least, so the score of the
    framework is `w * (H g)` above its minimum; connections that are zero already score 0.

    Args:
        batches: batches that the gradient is averaged over; their graphs are held in memory together.
        temperature: divisor of the logits, above 0.

    Sample: `pruner: {kind: grasp}` in a stage with `epochs: 0`
    """

    kind: Literal["grasp"] = "grasp"
    batches: int = Field(default=1, ge=1)
    temperature: Number = Field(default=200.0, gt=0)

    def score(self, view: MaskView, probe: Probe) -> dict[str, Tensor]:
        plain = plain_copy(view.model)
        weights = [plain.get_parameter(name).requires_grad_() for name in view.modules]
        with sdpa_kernel(SDPBackend.MATH):  # the other kernels of attention are differentiated once only
            slopes = [
                torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
                for loss in probe.losses(_Cooled(plain, self.temperature), self.batches)
            ]
        means = [torch.stack(parts).mean(0) for parts in zip(*slopes, strict=True)]
        flow = torch.stack([(mean * mean.detach()).sum() for mean in means]).sum()
        products = torch.autograd.grad(flow, weights, materialize_grads=True)
        held = {name: weight.detach() for name, weight in zip(view.modules, weights, strict=True)}
        signed = {name: weight * product for (name, weight), product in zip(held.items(), products, strict=True)}
        return lifted(signed, held)
