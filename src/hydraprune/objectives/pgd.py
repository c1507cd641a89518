"""Iterative adversarial training (Madry et al., arXiv:1706.06083)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hydraprune.attacks.gradient import Start, cross_entropy_of, pgd
from hydraprune.core.objective import Batch, Context, Loss, Objective, accuracy
from hydraprune.core.spec import Number
from hydraprune.core.threat import ThreatModel


def attacked(
    model: nn.Module, batch: Batch, ctx: Context, threat: ThreatModel, steps: int, step_size: float | None, start: Start
) -> Tensor:
    """The images (B, C, H, W) near those of `batch` at which PGD makes the present cross-entropy largest."""
    loss, rng = cross_entropy_of(batch.y), ctx.rng
    return pgd(ctx.frozen(model), batch.x, threat, loss, steps=steps, step_size=step_size, start=start, rng=rng)


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
        logits = model(attacked(model, batch, ctx, threat, self.steps, self.step_size, "uniform")).float()
        loss = F.cross_entropy(logits, batch.y)
        return Loss(loss, {"robust_accuracy": accuracy(logits, batch.y)})
