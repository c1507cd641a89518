"""MART: adversarial training that minds misclassified images more (Wang et al., ICLR 2020)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import nn

from hydraprune.core.objective import Batch, Context, Loss, Objective, accuracy
from hydraprune.core.spec import Number
from hydraprune.objectives.pgd import attacked
from hydraprune.objectives.trades import divergence


class MART(Objective):
    """`BCE(p(x'), y) + beta * KL(p(x) || p(x')) * (1 - p_y(x))`, the mean over the batch (equation 11).

    BCE is `-log p_y(x') - log(1 - max_{j != y} p_j(x'))`; x' maximises the cross-entropy.

    Args:
        beta: weight of the second term, at least 0.
        steps: steps of the attack.
        step_size: length of each, in pixels of [0, 1]; None takes `2.5 * eps / steps`.

    Sample: `objective: {kind: mart, beta: 5, steps: 10, step_size: 2/255}`
    """

    kind: Literal["mart"] = "mart"
    beta: Number = Field(default=5.0, ge=0)
    steps: int = Field(default=10, ge=1)
    step_size: Number | None = Field(default=None, gt=0)

    def __call__(self, model: nn.Module, batch: Batch, ctx: Context) -> Loss:
        threat = ctx.adversary(self.kind)
        adversarial = attacked(model, batch, ctx, threat, self.steps, self.step_size, "gaussian")
        natural, robust = model(batch.x).float(), model(adversarial).float()
        label = batch.y[:, None]
        rival = robust.softmax(1).scatter(1, label, 0.0).amax(1)
        boosted = F.cross_entropy(robust, batch.y, reduction="none") - (1.0001 - rival).log()
        doubt = 1 - natural.softmax(1).gather(1, label)[:, 0]
        loss = (boosted + self.beta * divergence(natural, robust) * doubt).mean()
        metrics = {"accuracy": accuracy(natural, batch.y), "robust_accuracy": accuracy(robust, batch.y)}
        return Loss(loss, metrics)
