"""Training with linear bounds on interval boxes (Zhang et al., arXiv:1906.06316)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from hydraprune.bounds.base import Analysis
from hydraprune.core.spec import Number
from hydraprune.objectives.certified import Step
from hydraprune.objectives.ibp import Mixed
from hydraprune.objectives.schedule import follow


class CrownIBP(Mixed):
    """As `ibp`, with margins that are `beta` of the linear bound and `1 - beta` of the interval bound (equation 12).

    Args:
        beta_final: weight of the linear bound when eps is full; it starts at 1. With 0, as in HYDRA, training ends with
            intervals alone; the authors take 1 for CIFAR-10 at 2/255.

    Sample: `objective: {kind: crown-ibp, ramp: {length: 120}}`
    """

    kind: Literal["crown-ibp"] = "crown-ibp"
    beta_final: Number = Field(default=0.0, ge=0, le=1)

    def margins(self, analysis: Analysis, step: Step) -> Tensor:
        intervals = analysis.interval_margins(step.batch.y)
        beta = follow(step.share, self.beta_final)
        if beta < 1e-5:  # the linear bound costs several times as much
            return intervals
        return beta * analysis.margins(step.batch.y) + (1 - beta) * intervals
