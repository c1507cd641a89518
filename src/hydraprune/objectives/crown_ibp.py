"""Training with linear bounds on interval boxes (Zhang et al., arXiv:1906.06316)."""

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


class CrownIBP(Objective):
    """As `ibp`, with margins that are `beta` of the linear bound and `1 - beta` of the interval bound (equation 12).

    Args:
        ramp: how eps grows; at once by default.
        kappa_final: weight of the clean loss when eps is full, from 1 at the start; None leaves it out, as HYDRA does.
        beta_final: weight of the linear bound when eps is full; it starts at 1. With 0, as in HYDRA, training ends with
            intervals alone; the authors take 1 for CIFAR-10 at 2/255.
        warmup: weight of the regulariser of arXiv:2103.17268 at the start; it falls to 0 as eps grows.

    Raises:
        SpecError: where the threat is not `linf`, or the network has no bounds.

    Sample: `objective: {kind: crown-ibp, ramp: {length: 120}}`
    """

    kind: Literal["crown-ibp"] = "crown-ibp"
    ramp: Ramp = Ramp()
    kappa_final: Number | None = Field(default=None, ge=0, le=1)
    beta_final: Number = Field(default=0.0, ge=0, le=1)
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
            analysis = bounds.CrownIBP().analyse(model, box, statistics)
            margins = analysis.interval_margins(y)
            beta = follow(share, self.beta_final)
            if beta >= 1e-5:  # the linear bound costs several times as much
                margins = beta * analysis.margins(y) + (1 - beta) * margins
            loss = robust_loss(margins, y)
            kappa = 0.0 if self.kappa_final is None else follow(share, self.kappa_final)
            if kappa > 0:
                loss = kappa * clean + (1 - kappa) * loss
            if self.warmup > 0 and share < 1:
                loss = loss + self.warmup * (1 - share) * warmup_loss(box, analysis.boxes.values())
        return Loss(loss, metrics | {"verified_accuracy": verified(margins)})
