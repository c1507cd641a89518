"""Free adversarial training: one backward pass serves the weights and the attack (Shafahi et al., arXiv:1904.12843)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from hydraprune.core.objective import Batch, Context, Loss, Objective, accuracy
from hydraprune.core.threat import PIXELS


class Free(Objective):
    """Cross-entropy at `x + delta`, each batch replayed, delta moved by the gradient of the step before (algorithm 1).

    The perturbation is shaped like a batch, carries over to the next batch and starts at zero in every epoch. Each
    replay is one optimizer step, so an epoch takes `replays` times the steps: divide the epochs by it, as the paper
    does.

    Args:
        replays: steps on each batch, the paper's m.

    Sample: `objective: {kind: free, replays: 4}`
    """

    kind: Literal["free"] = "free"
    replays: int = Field(default=4, ge=1)

    def steps_per_batch(self) -> int:
        return self.replays

    def __call__(self, model: nn.Module, batch: Batch, ctx: Context) -> Loss:
        threat = ctx.adversary(self.kind)
        delta = ctx.state.get("delta")
        if delta is None or len(delta) < len(batch.x):
            delta = torch.zeros_like(batch.x)
        elif delta.grad is not None:
            delta = threat.shrink(delta.detach() + threat.eps * threat.steepest(delta.grad))
        # A leaf, so that the training step's own backward pass leaves the gradient for the next replay in it.
        delta = delta.detach().requires_grad_()
        ctx.state["delta"] = delta
        logits = model((batch.x + delta[: len(batch.x)]).clamp(*PIXELS)).float()
        loss = F.cross_entropy(logits, batch.y)
        return Loss(loss, {"robust_accuracy": accuracy(logits, batch.y)})
