"""An objective with an input of its own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from hydraprune.core.objective import Batch, Context, Loss, Objective
from hydraprune.core.spec import Number


class Anchored(Objective):
    """Cross-entropy, and the distance of the logits from those of an anchor.

    Args:
        weight: of the distance.
    """

    kind: Literal["anchored"] = "anchored"
    weight: Number = Field(default=0.1, ge=0)

    def networks(self) -> frozenset[str]:
        return frozenset({"anchor"})

    def __call__(self, model: nn.Module, batch: Batch, ctx: Context) -> Loss:
        logits = model(batch.x)
        distance = mse_loss(logits, ctx.network("anchor", self.kind)(batch.x))
        value = cross_entropy(logits, batch.y) + self.weight * distance
        return Loss(value, {"anchor_distance": distance.detach()})
