"""Iterative adversarial training (Madry et al., arXiv:1706.06083)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import nn

from hydraprune.attacks.gradient import cross_entropy_of, pgd
from hydraprune.core.objective import Batch, Context, Loss, Objective, accuracy
from hydraprune.core.spec import Number


class PGD(Objective):
    """Training on the image that PGD finds worst, from a random start; `attacks.pgd.PGD` judges a finished network.

    Args:
        steps: steps of the attack.
        step_size: length of each, in the threat's norm and pixels of [0, 1]; None takes `2.5 * eps / steps`, which
            lets the attack cross the ball from any start.

    Sample: `objective: {kind: pgd, steps: 10, step_size: 2/255}`
    """

    kind: Literal["pgd"] = "pgd"
    steps: int = Field(default=10, ge=1)
    step_size: Number | None = Field(default=None, gt=0)

    def __call__(self, model: nn.Module, batch: Batch, ctx: Context) -> Loss:
        threat = ctx.adversary(self.kind)
        adversarial = pgd(
            ctx.frozen(model),
            batch.x,
            threat,
            cross_entropy_of(batch.y),
            steps=self.steps,
            step_size=self.step_size,
            start="uniform",
            rng=ctx.rng,
        )
        logits = model(adversarial).float()
        loss = F.cross_entropy(logits, batch.y)
        return Loss(loss, {"robust_accuracy": accuracy(logits, batch.y)})
