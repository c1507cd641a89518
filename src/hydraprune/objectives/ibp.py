"""Training with interval bounds (Gowal et al., arXiv:1810.12715)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import nn

from hydraprune.bounds import methods as bounds
from hydraprune.core.objective import Batch, Context, Loss, Objective, accuracy
from hydraprune.core.spec import Number
from hydraprune.objectives.certified import clean_pass, full_precision, robust_loss, verified
from hydraprune.objectives.schedule import Ramp, follow
from hydraprune.objectives.warmup import warmup_loss


class IBP(Objective):
    """`kappa * CE(f(x), y) + (1 - kappa) * CE(worst logits by intervals, y)` (equation 11), natural while eps is 0.

    Batch norm sees the clean images alone, once a step; bounds take its statistics from there, with gradient, and are
    computed in float32 whatever the autocast. `verified_accuracy` is the share of the batch that the intervals verify
    at the present eps, of the network as it is normalised in training.

    Args:
        ramp: how eps grows; at once by default.
        kappa_final: weight of the clean loss when eps is full; it starts at 1 and falls as eps grows. None leaves the
            clean loss out, as HYDRA does.
        warmup: weight of the regulariser of arXiv:2103.17268 at the start (there 0.5); it falls to 0 as eps grows.

    Raises:
        SpecError: where the threat is not `linf`, or the network has no bounds.

    Sample: `objective: {kind: ibp, ramp: {start: 1, length: 80, shape: smooth}, warmup: 0.5}`
    """

    kind: Literal["ibp"] = "ibp"
    ramp: Ramp = Ramp()
    kappa_final: Number | None = Field(default=None, ge=0, le=1)
    warmup: Number = Field(default=0.0, ge=0)

    def __call__(self, model: nn.Module, batch: Batch, ctx: Context) -> Loss:
        x, y = batch
        share = self.ramp.share(ctx.clock.epoch)
        threat = ctx.adversary(self.kind, "linf").scaled(share)
        logits, statistics = clean_pass(model, x)
        clean, right = F.cross_entropy(logits, y), accuracy(logits, y)
        metrics = {"accuracy": right, "eps": clean.new_tensor(threat.eps), "verified_accuracy": right}
        if threat.eps == 0:
            return Loss(clean, metrics)
        box = threat.box(x)
        with full_precision(x):
            analysis = bounds.IBP().analyse(model, box, statistics)
            margins = analysis.interval_margins(y)
            loss = robust_loss(margins, y)
            kappa = 0.0 if self.kappa_final is None else follow(share, self.kappa_final)
            if kappa > 0:
                loss = kappa * clean + (1 - kappa) * loss
            if self.warmup > 0 and share < 1:
                loss = loss + self.warmup * (1 - share) * warmup_loss(box, analysis.boxes.values())
        return Loss(loss, metrics | {"verified_accuracy": verified(margins)})
