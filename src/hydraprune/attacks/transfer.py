"""Images found on another network (arXiv:1605.07277): a dense one against its pruned twin, or the other way round."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hydraprune.attacks.gradient import ascend, cross_entropy_of, step_length
from hydraprune.core.attack import Attack
from hydraprune.core.threat import ThreatModel


class Transfer(Attack):
    """All steps of PGD on another network, also where it is fooled already: deep in the wrong class, images transfer.

    The network itself judges the end of each restart; an image that it gets wrong is left out of later ones. Every
    restart draws its noise for all images.

    Args:
        origin: name of the other network, which has the same classes.
        steps: gradient steps of each restart.
        restarts: random starts per image.

    Example: `{kind: transfer, origin: pretrain}`.
    """

    kind: Literal["transfer"] = "transfer"
    origin: str = "pretrain"
    steps: int = Field(50, ge=1)
    restarts: int = Field(1, ge=1)

    @property
    def name(self) -> str:
        strength = f"{self.steps}x{self.restarts}" if self.restarts > 1 else str(self.steps)
        return f"transfer-{strength}-from-{self.origin}"

    def networks(self) -> frozenset[str]:
        return frozenset({self.origin})

    def search(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: torch.Generator) -> Tensor:
        surrogate, step_size = self.network(self.origin), step_length(threat, self.steps)
        worst = x.clone()
        standing = torch.arange(len(x), device=x.device)
        for _ in range(self.restarts):
            found, here, labels = threat.sample(x, rng)[standing], x[standing], y[standing]
            for _ in range(self.steps):
                found, _ = ascend(surrogate, here, found, threat, cross_entropy_of(labels), step_size)
            worst[standing] = found
            with torch.no_grad():
                standing = standing[model(found).argmax(1) == labels]
            if len(standing) == 0:
                break
        return worst
