"""Robust distillation: what a robust teacher says of an image is the target around it (RSLAD, arXiv:2108.07969)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from hydraprune.attacks.gradient import pgd
from hydraprune.core.objective import Batch, Context, Loss, Objective
from hydraprune.core.spec import Number
from hydraprune.objectives import OBJECTIVES
from hydraprune.objectives.natural import Natural
from hydraprune.objectives.trades import divergence


class Distill(Objective):
    """`base + weight * T^2 * KL(teacher(x) || model(x'))`, probabilities at temperature T.

    x' is the image in the ball that maximises this KL, as in RSLAD (equation 8), or x itself with `steps: 0`, which is
    the distillation of arXiv:1503.02531. With base `natural` the loss is that of ARD (arXiv:1905.09747), but for the
    attack, which there maximises the cross-entropy. RSLAD has no labels: `{kind: distill, weight: 5/6, base: {kind:
    distill, weight: 1/6, steps: 0, base: null}}`. Labels in the base cost it a pass, and its attack, of its own.

    Args:
        base: the objective that the term is added to; None trains on the teacher alone.
        weight: weight of the term, above 0.
        temperature: divisor of all logits in the term, above 0; T^2 keeps the size of its gradient.
        steps: steps of the attack; 0 distils on the images themselves.
        step_size: length of each, in pixels of [0, 1]; None takes `2.5 * eps / steps`.

    Sample: `objective: {kind: distill, base: {kind: trades}}` in a stage with `networks: {teacher: pretrain}`
    """

    kind: Literal["distill"] = "distill"
    base: Annotated[Objective, OBJECTIVES] | None = Natural()
    weight: Number = Field(default=1.0, gt=0)
    temperature: Number = Field(default=1.0, gt=0)
    steps: int = Field(default=10, ge=0)
    step_size: Number | None = Field(default=None, gt=0)

    def parts(self) -> tuple[Objective, ...]:
        return () if self.base is None else (self.base,)

    def networks(self) -> frozenset[str]:
        return super().networks() | {"teacher"}

    def __call__(self, model: nn.Module, batch: Batch, ctx: Context) -> Loss:
        teacher, x = ctx.network("teacher", self.kind), batch.x
        with torch.no_grad():
            target = teacher(x).float() / self.temperature
        if self.steps:
            threat = ctx.adversary(self.kind)
            x = pgd(
                ctx.frozen(model),
                x,
                threat,
                lambda logits: divergence(target, logits / self.temperature),
                steps=self.steps,
                step_size=self.step_size,
                start="gaussian",
                rng=ctx.rng,
            )
        base = Loss(target.new_zeros(()), {}) if self.base is None else self.base(model, batch, ctx)
        term = self.temperature**2 * divergence(target, model(x).float() / self.temperature).mean()
        return Loss(base.value + self.weight * term, base.metrics | {"distillation_loss": term.detach()})
