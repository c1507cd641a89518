"""TRADES: clean accuracy against stability of the prediction (Zhang et al., arXiv:1901.08573)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hydraprune.attacks.gradient import pgd, step_length
from hydraprune.core.objective import Batch, Context, Loss, Objective, accuracy
from hydraprune.core.spec import Number


def divergence(natural: Tensor, adversarial: Tensor) -> Tensor:
    """KL(softmax(natural) || softmax(adversarial)) per sample, (B,), from logits (B, K)."""
    return F.kl_div(F.log_softmax(adversarial, 1), F.log_softmax(natural, 1), reduction="none", log_target=True).sum(1)


class TRADES(Objective):
    """`CE(f(x), y) + beta * KL(f(x) || f(x'))`, x' being the image in the ball that maximises the KL (equation 5).

    The attack starts at `x + 0.001 * N(0, 1)`; the natural term takes gradients in both places that it stands.

    Args:
        beta: weight of the stability term, at least 0.
        steps: steps of the attack.
        step_size: length of each, in pixels of [0, 1]; None takes `2.5 * eps / steps` for `linf` and
            `2 * eps / steps` for `l2` (the authors').
        natural_passes: forward passes of the clean batch in training mode, each of which moves the norm statistics.
            1 is enough; the TRADES authors' code makes 2, and HYDRA's 3.

    Sample: `objective: {kind: trades, beta: 6, steps: 10, step_size: 2/255}`
    """

    kind: Literal["trades"] = "trades"
    beta: Number = Field(default=6.0, ge=0)
    steps: int = Field(default=10, ge=1)
    step_size: Number | None = Field(default=None, gt=0)
    natural_passes: int = Field(default=1, ge=1, le=3)

    def __call__(self, model: nn.Module, batch: Batch, ctx: Context) -> Loss:
        threat = ctx.adversary(self.kind)
        frozen = ctx.frozen(model)
        with torch.no_grad():
            reference = frozen(batch.x).float()
            for _ in range(self.natural_passes - 1):
                model(batch.x)
        length = step_length(threat, self.steps, 2.5 if threat.norm == "linf" else 2)
        adversarial = pgd(
            frozen,
            batch.x,
            threat,
            lambda logits: divergence(reference, logits),
            steps=self.steps,
            step_size=length if self.step_size is None else self.step_size,
            start="gaussian",
            rng=ctx.rng,
        )
        natural, attacked = model(batch.x).float(), model(adversarial).float()
        clean = F.cross_entropy(natural, batch.y)
        stability = divergence(natural, attacked).mean()
        metrics = {
            "accuracy": accuracy(natural, batch.y),
            "robust_accuracy": accuracy(attacked, batch.y),
            "clean_loss": clean.detach(),
            "stability_loss": stability.detach(),
        }
        return Loss(clean + self.beta * stability, metrics)
