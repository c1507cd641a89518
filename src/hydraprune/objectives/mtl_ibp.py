"""MTL-IBP: a little of the certified loss on top of adversarial training (De Palma et al., arXiv:2305.13991)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field

from hydraprune.bounds.methods import IBP
from hydraprune.bounds.statistics import normalised_by
from hydraprune.core.objective import Loss
from hydraprune.core.spec import Number
from hydraprune.objectives.certified import Certified, Step, full_precision, robust_loss, verified


class MTLIBP(Certified):
    """`alpha * CE(worst logits by intervals, y) + (1 - alpha) * CE(f(x'), y)`, x' found by PGD (section 4.2).

    The attacked images are normalised with the statistics of the clean ones. The loss bounds nothing unless alpha is 1;
    `verified_accuracy` is what intervals verify of the batch at the present eps all the same.

    Args:
        alpha: weight of the certified loss; the authors take 0.01 for CIFAR-10 at 2/255 and 0.6 at 8/255.
        reach: radius of the attack as a multiple of eps; the authors take 2 at 2/255 and 1 at 8/255.
        steps: steps of the attack.

    Sample: `objective: {kind: mtl-ibp, alpha: 0.01, reach: 2, ramp: {start: 1, length: 80}}`
    """

    kind: Literal["mtl-ibp"] = "mtl-ibp"
    alpha: Number = Field(default=0.01, ge=0, le=1)
    reach: Number = Field(default=2.0, gt=0)
    steps: int = Field(default=8, ge=1)

    accuracies: ClassVar = ("verified_accuracy", "robust_accuracy")

    def robust(self, step: Step) -> Loss:
        x, y = step.batch
        adversarial = step.attacked(step.threat.model_copy(update={"eps": self.reach * step.threat.eps}), self.steps)
        with normalised_by(step.statistics):
            logits = step.model(adversarial).float()
        with full_precision(x):
            margins = IBP().margins(step.model, step.box, y, step.statistics)
        loss = self.alpha * robust_loss(margins, y) + (1 - self.alpha) * F.cross_entropy(logits, y)
        robust = (logits.argmax(1) == y).float().mean()
        return Loss(loss, {"verified_accuracy": verified(margins), "robust_accuracy": robust})
