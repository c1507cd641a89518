"""The attack of Carlini and Wagner in l2 (arXiv:1608.04644), by foolbox."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hydraprune.attacks.foolbox import closest
from hydraprune.core.attack import MinimumNorm
from hydraprune.core.spec import Number
from hydraprune.core.threat import ThreatModel


class CarliniWagner(MinimumNorm):
    """Adam on distance plus a constant times the margin, with a search for the constant, for `l2` only.

    Args:
        steps: steps of Adam for each constant; the paper takes 10,000.
        searches: constants that are tried, by binary search.
        step_size: learning rate of Adam, in the attack's unbounded coordinates.
        init_const: first constant.

    Example: `{kind: cw}`.
    """

    norms: ClassVar[tuple[str, ...]] = ("l2",)
    library = "foolbox"

    kind: Literal["cw"] = "cw"
    steps: int = Field(1000, ge=1)
    searches: int = Field(9, ge=1)
    step_size: Number = Field(0.01, gt=0)
    init_const: Number = Field(0.001, gt=0)

    @property
    def name(self) -> str:
        return f"cw-{self.steps}x{self.searches}"

    def closest(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: torch.Generator) -> Tensor:
        settings = {"binary_search_steps": self.searches, "steps": self.steps, "stepsize": self.step_size}
        return closest("L2CarliniWagnerAttack", model, x, y, rng, initial_const=self.init_const, **settings)
