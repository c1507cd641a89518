"""Decoupled direction and norm (arXiv:1811.09600), by foolbox."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hydraprune.attacks.foolbox import closest
from hydraprune.core.attack import MinimumNorm
from hydraprune.core.spec import Number
from hydraprune.core.threat import ThreatModel


class DDN(MinimumNorm):
    """Unit gradient steps on a sphere whose radius shrinks while the image is misclassified, for `l2` only.

    Args:
        steps: gradient steps.
        init_radius: first radius, in pixels of [0, 1].
        gamma: share by which the radius changes in each step.

    Example: `{kind: ddn}`.
    """

    norms: ClassVar[tuple[str, ...]] = ("l2",)
    library = "foolbox"

    kind: Literal["ddn"] = "ddn"
    steps: int = Field(100, ge=1)
    init_radius: Number = Field(1.0, gt=0)
    gamma: Number = Field(0.05, gt=0, lt=1)

    @property
    def name(self) -> str:
        return f"ddn-{self.steps}"

    def closest(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: torch.Generator) -> Tensor:
        settings = {"steps": self.steps, "init_epsilon": self.init_radius, "gamma": self.gamma}
        return closest("DDNAttack", model, x, y, rng, **settings)
