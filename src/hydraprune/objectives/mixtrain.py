"""MixTrain: symbolic intervals on a few images of each batch (Wang et al., arXiv:1811.02625)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field

from hydraprune.bounds.methods import Symbolic
from hydraprune.core.objective import Clock, Loss
from hydraprune.core.spec import Number
from hydraprune.objectives.certified import Certified, Step, full_precision, robust_loss

_GROWTH, _EPOCHS, _LARGEST = 2.5, 5, 50.0


class MixTrain(Certified):
    """`CE(f(x), y)` of the batch, plus `weight` times the CE of the worst logits of a few images, as HYDRA trains it.

    eps is constant within an epoch. Once it is full the weight grows by 2.5 every 5 epochs, up to 50, in each stage
    anew. The images are drawn with replacement.

    Args:
        images: how many images of a batch are bounded; HYDRA takes 5 for CNN-small and 1 for CNN-large.
        probability: of bounding any, batch by batch.
        weight: of the worst case at the start.

    Sample: `objective: {kind: mixtrain, images: 5, ramp: {length: 15}}`
    """

    kind: Literal["mixtrain"] = "mixtrain"
    images: int = Field(default=1, ge=1)
    probability: Number = Field(default=0.8, ge=0, le=1)
    weight: Number = Field(default=0.1, ge=0)

    def share(self, clock: Clock) -> float:
        return self.ramp.share(math.floor(clock.epoch))

    def weight_at(self, clock: Clock) -> float:
        """The weight of the worst case at this optimizer step."""
        since = max(0.0, math.floor(clock.epoch) - self.ramp.end)
        return min(_LARGEST, self.weight * _GROWTH ** math.floor(since / _EPOCHS))

    def robust(self, step: Step) -> Loss:
        x, y = step.batch
        rng = step.ctx.rng
        if torch.rand((), generator=rng, device=x.device) >= self.probability:
            return Loss(step.clean, {})
        drawn = torch.randint(len(x), (self.images,), generator=rng, device=x.device)
        with full_precision(x):
            margins = Symbolic().margins(step.model, step.threat.box(x[drawn]), y[drawn], step.statistics)
        return Loss(step.clean + self.weight_at(step.ctx.clock) * robust_loss(margins, y[drawn]), {})
