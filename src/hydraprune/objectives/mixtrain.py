"""MixTrain: symbolic intervals on a few images of each batch (Wang et al., arXiv:1811.02625)."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from hydraprune.bounds.methods import Symbolic
from hydraprune.core.objective import Batch, Clock, Context, Loss, Objective, accuracy
from hydraprune.core.spec import Number
from hydraprune.objectives.certified import clean_pass, full_precision, robust_loss
from hydraprune.objectives.schedule import Ramp

_GROWTH, _EPOCHS, _LARGEST = 2.5, 5, 50.0


class MixTrain(Objective):
    """`CE(f(x), y)` of the batch, plus `weight` times the CE of the worst logits of a few images, as HYDRA trains it.

    eps is constant within an epoch. Once it is full the weight grows by 2.5 every 5 epochs, up to 50, in each stage
    anew. The images are drawn with replacement.

    Args:
        ramp: how eps grows, epoch by epoch; at once by default.
        images: how many images of a batch are bounded; HYDRA takes 5 for CNN-small and 1 for CNN-large.
        probability: of bounding any, batch by batch.
        weight: of the worst case at the start.

    Raises:
        SpecError: where the threat is not `linf`, or the network has no bounds.

    Sample: `objective: {kind: mixtrain, images: 5, ramp: {length: 15}}`
    """

    kind: Literal["mixtrain"] = "mixtrain"
    ramp: Ramp = Ramp()
    images: int = Field(default=1, ge=1)
    probability: Number = Field(default=0.8, ge=0, le=1)
    weight: Number = Field(default=0.1, ge=0)

    def weight_at(self, clock: Clock) -> float:
        """The weight of the worst case at this optimizer step."""
        since = max(0.0, math.floor(clock.epoch) - self.ramp.end)
        return min(_LARGEST, self.weight * _GROWTH ** math.floor(since / _EPOCHS))

    def __call__(self, model: nn.Module, batch: Batch, ctx: Context) -> Loss:
        x, y = batch
        threat = ctx.adversary(self.kind, "linf").scaled(self.ramp.share(math.floor(ctx.clock.epoch)))
        logits, statistics = clean_pass(model, x)
        clean = F.cross_entropy(logits, y)
        metrics = {"accuracy": accuracy(logits, y), "eps": clean.new_tensor(threat.eps)}
        if threat.eps == 0 or torch.rand((), generator=ctx.rng, device=x.device) >= self.probability:
            return Loss(clean, metrics)
        drawn = torch.randint(len(x), (self.images,), generator=ctx.rng, device=x.device)
        with full_precision(x):
            margins = Symbolic().margins(model, threat.box(x[drawn]), y[drawn], statistics)
        return Loss(clean + self.weight_at(ctx.clock) * robust_loss(margins, y[drawn]), metrics)
