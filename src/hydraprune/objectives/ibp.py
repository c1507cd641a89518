"""Training with interval bounds (Gowal et al., arXiv:1810.12715)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from hydraprune.bounds.base import Analysis
from hydraprune.bounds.methods import CrownIBP as CrownIBPBounds
from hydraprune.core.objective import Loss
from hydraprune.core.spec import Number
from hydraprune.objectives.certified import Certified, Step, full_precision, robust_loss, verified
from hydraprune.objectives.schedule import follow
from hydraprune.objectives.warmup import warmup_loss


class Mixed(Certified, ABC):
    """Base: `kappa * CE(f(x), y) + (1 - kappa) * CE(worst logits, y)`, and a regulariser while eps grows.

    Args:
        kappa_final: weight of the clean loss when eps is full; it starts at 1 and falls as eps grows. None leaves the
            clean loss out, as HYDRA does.
        warmup: weight of the regulariser of arXiv:2103.17268 at the start (there 0.5); it falls to 0 as eps grows.
    """

    kappa_final: Number | None = Field(default=None, ge=0, le=1)
    warmup: Number = Field(default=0.0, ge=0)

    accuracies: ClassVar = ("verified_accuracy",)

    @abstractmethod
    def margins(self, analysis: Analysis, step: Step) -> Tensor:
        """(B, K) lower bounds of f_y - f_j, 0 at j = y."""

    def robust(self, step: Step) -> Loss:
        with full_precision(step.batch.x):
            # Both bounds that are trained with have the boxes of interval arithmetic.
            analysis = CrownIBPBounds().analyse(step.model, step.box, step.statistics)
            margins = self.margins(analysis, step)
            loss = robust_loss(margins, step.batch.y)
            kappa = 0.0 if self.kappa_final is None else follow(step.share, self.kappa_final)
            if kappa > 0:
                loss = kappa * step.clean + (1 - kappa) * loss
            weight = self.warmup * (1 - step.share)
            if weight > 0:
                loss = loss + weight * warmup_loss(step.box, analysis.boxes.values())
        return Loss(loss, {"verified_accuracy": verified(margins)})


class IBP(Mixed):
    """Cross-entropy of the worst logits by interval arithmetic, mixed with the clean one (equation 11).

    `verified_accuracy` is the share of the batch that the intervals verify at the present eps, of the network as it is
    normalised in training.

    Sample: `objective: {kind: ibp, ramp: {start: 1, length: 80, shape: smooth}, warmup: 0.5}`
    """

    kind: Literal["ibp"] = "ibp"

    def margins(self, analysis: Analysis, step: Step) -> Tensor:
        return analysis.interval_margins(step.batch.y)
