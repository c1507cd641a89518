"""Images found on another network (arXiv:1605.07277): a dense one against its pruned twin, or the other way round."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hydraprune.attacks.gradient import cross_entropy_of, pgd
from hydraprune.core.attack import Attack
from hydraprune.core.threat import ThreatModel


class Transfer(Attack):
    """All steps of PGD on another network, also where it is fooled already: deep in the wrong class, images transfer.

    Args:
        origin: name of the other network, which has the same classes.
        steps: gradient steps.

    Example: `{kind: transfer, origin: pretrain}`.
    """

    kind: Literal["transfer"] = "transfer"
    origin: str = "pretrain"
    steps: int = Field(50, ge=1)

    @property
    def name(self) -> str:
        return f"transfer-{self.steps}-from-{self.origin}"

    def networks(self) -> frozenset[str]:
        return frozenset({self.origin})

    def search(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: torch.Generator) -> Tensor:
        surrogate = self.network(self.origin)
        return pgd(surrogate, x, threat, cross_entropy_of(y), steps=self.steps, start="uniform", rng=rng)
