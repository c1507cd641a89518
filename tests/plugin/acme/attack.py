"""An attack that needs a second network."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hydraprune.core.attack import Attack
from hydraprune.core.threat import ThreatModel


class Committee(Attack):
    """One signed step up the loss of two networks in sum.

    Args:
        other: name of the second one.
    """

    kind: Literal["committee"] = "committee"
    other: str = "pretrain"

    @property
    def name(self) -> str:
        return f"committee-with-{self.other}"

    def networks(self) -> frozenset[str]:
        return frozenset({self.other})

    def search(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: torch.Generator) -> Tensor:
        x = x.clone().requires_grad_()
        loss = cross_entropy(model(x), y) + cross_entropy(self.network(self.other)(x), y)
        (slope,) = torch.autograd.grad(loss, x)
        return x.detach() + threat.eps * slope.sign()
