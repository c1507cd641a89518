"""Training with linear bounds on interval boxes (Zhang et al., arXiv:1906.06316)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from hydraprune.bounds import methods as bounds
from hydraprune.bounds.base import Analysis
from hydraprune.core.spec import Number
from hydraprune.objectives.certified import OverBoxes
from hydraprune.objectives.schedule import follow


class CrownIBP(OverBoxes):
    """As `ibp`, with margins that are `beta` of the linear bound and `1 - beta` of the interval bound (equation 12).

    Args:
        beta_final: weight of the linear bound when eps is full; it starts at 1. With 0, as in HYDRA, training ends with
            intervals alone; the authors take 1 for CIFAR-10 at 2/255.

    Sample: `objective: {kind: crown-ibp, ramp: {length: 120}}`
    """

    kind: Literal["crown-ibp"] = "crown-ibp"
    bound: ClassVar = bounds.CrownIBP()
    beta_final: Number = Field(default=0.0, ge=0, le=1)

    def margins(self, analysis: Analysis, y: Tensor, share: float) -> Tensor:
        margins = analysis.interval_margins(y)
        beta = follow(share, self.beta_final)
        # The linear bound costs several times as much.
        return margins if beta < 1e-5 else beta * analysis.margins(y) + (1 - beta) * margins
