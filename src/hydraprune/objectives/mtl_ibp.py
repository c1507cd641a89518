"""MTL-IBP: a little of the certified loss on top of adversarial training (De Palma et al., arXiv:2305.13991)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import nn

from hydraprune.bounds import methods as bounds
from hydraprune.bounds.statistics import normalised_by
from hydraprune.core.objective import Batch, Context, Loss, Objective, accuracy
from hydraprune.core.spec import Number
from hydraprune.objectives.certified import clean_pass, full_precision, robust_loss, verified
from hydraprune.objectives.pgd import attacked
from hydraprune.objectives.schedule import Ramp


class MTLIBP(Objective):
    """`alpha * CE(worst logits by intervals, y) + (1 - alpha) * CE(f(x'), y)`, x' found by PGD (section 4.2).

    The attacked images are normalised with the statistics of the clean ones. The loss bounds nothing unless alpha is 1;
    `verified_accuracy` is what intervals verify of the batch at the present eps all the same.

    Args:
        ramp: how eps grows; at once by default.
        alpha: weight of the certified loss; the authors take 0.01 for CIFAR-10 at 2/255 and 0.6 at 8/255.
        reach: radius of the attack as a multiple of eps; the authors take 2 at 2/255 and 1 at 8/255.
        steps: steps of the attack.

    Raises:
        SpecError: where the threat is not `linf`, or the network has no bounds.

    Sample: `objective: {kind: mtl-ibp, alpha: 0.01, reach: 2, ramp: {start: 1, length: 80}}`
    """

    kind: Literal["mtl-ibp"] = "mtl-ibp"
    ramp: Ramp = Ramp()
    alpha: Number = Field(default=0.01, ge=0, le=1)
    reach: Number = Field(default=2.0, gt=0)
    steps: int = Field(default=8, ge=1)

    def __call__(self, model: nn.Module, batch: Batch, ctx: Context) -> Loss:
        x, y = batch
        threat = ctx.adversary(self.kind, "linf").scaled(self.ramp.share(ctx.clock.epoch))
        logits, statistics = clean_pass(model, x)
        clean, right = F.cross_entropy(logits, y), accuracy(logits, y)
        metrics = {"accuracy": right, "eps": clean.new_tensor(threat.eps)}
        if threat.eps == 0:
            return Loss(clean, metrics | {"verified_accuracy": right, "robust_accuracy": right})
        adversarial = attacked(model, batch, ctx, threat.scaled(self.reach), self.steps, None, "uniform")
        with normalised_by(statistics):
            robust = model(adversarial).float()
        with full_precision(x):
            margins = bounds.IBP().margins(model, threat.box(x), y, statistics)
        loss = self.alpha * robust_loss(margins, y) + (1 - self.alpha) * F.cross_entropy(robust, y)
        metrics |= {"verified_accuracy": verified(margins), "robust_accuracy": accuracy(robust, y)}
        return Loss(loss, metrics)
