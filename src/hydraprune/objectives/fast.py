"""Fast adversarial training: one step from a random start (Wong et al., arXiv:2001.03994)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import nn

from hydraprune.core.objective import Batch, Context, Loss, Objective, accuracy
from hydraprune.core.spec import Number
from hydraprune.objectives.pgd import attacked


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
        logits = model(attacked(model, batch, ctx, threat, 1, self.alpha * threat.eps, "uniform")).float()
        loss = F.cross_entropy(logits, batch.y)
        return Loss(loss, {"robust_accuracy": accuracy(logits, batch.y)})
