"""Fast adversarial training: one step from a random start (Wong et al., arXiv:2001.03994)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import nn

from hydraprune.attacks.gradient import cross_entropy_of, pgd
from hydraprune.core.objective import Batch, Context, Loss, Objective, accuracy
from hydraprune.core.spec import Number


class Fast(Objective):
    """Cross-entropy after one attack step of `alpha * eps` from a uniform start (algorithm 3).

    Too large an `alpha` can end in catastrophic overfitting: robust accuracy falls to 0 within an epoch while the
    training loss looks well. Watch the validation accuracy.

    Args:
        alpha: step length as a multiple of eps; the paper's 1.25.

    Sample: `objective: {kind: fast}`
    """

    kind: Literal["fast"] = "fast"
    alpha: Number = Field(default=1.25, gt=0)

    def __call__(self, model: nn.Module, batch: Batch, ctx: Context) -> Loss:
        threat = ctx.adversary(self.kind)
        adversarial = pgd(
            ctx.frozen(model),
            batch.x,
            threat,
            cross_entropy_of(batch.y),
            steps=1,
            step_size=self.alpha * threat.eps,
            start="uniform",
            rng=ctx.rng,
        )
        logits = model(adversarial).float()
        loss = F.cross_entropy(logits, batch.y)
        return Loss(loss, {"robust_accuracy": accuracy(logits, batch.y)})
