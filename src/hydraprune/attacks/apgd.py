"""Auto-PGD alone, a step size that chooses itself (arXiv:2003.01690, Algorithm 1), by its authors' package."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hydraprune.attacks.autoattack import run
from hydraprune.core.attack import Attack
from hydraprune.core.threat import ThreatModel

PARTS = {"ce": "apgd-ce", "dlr": "apgd-dlr", "targeted-dlr": "apgd-t"}


class APGD(Attack):
    """One gradient attack of AutoAttack by itself.

    Args:
        loss: `ce`, `dlr` (from 3 classes on), or `targeted-dlr` against the 9 most likely wrong classes (from 4 on).
        steps: gradient steps per restart, and per target.
        restarts: random starts per image.
        eot_samples: passes over which each gradient is a mean, for a network that draws random numbers.
        batch_size: images per forward pass.

    Example: `{kind: apgd, loss: targeted-dlr}`.
    """

    library = "pyautoattack"

    kind: Literal["apgd"] = "apgd"
    loss: Literal["ce", "dlr", "targeted-dlr"] = "ce"
    steps: int = Field(100, ge=1)
    restarts: int = Field(1, ge=1)
    eot_samples: int = Field(1, ge=1)
    batch_size: int = Field(500, ge=1)

    @property
    def name(self) -> str:
        return f"apgd-{self.loss}-{self.steps}x{self.restarts}"

    def search(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: torch.Generator) -> Tensor:
        parts = [PARTS[self.loss]]
        return run(model, x, y, threat, rng, self.batch_size, self._adjust, version="custom", attacks=parts)

    def _adjust(self, library: Any) -> None:
        for attack in (library.apgd, library.apgd_targeted):
            attack.n_iter, attack.n_restarts, attack.eot_iter = self.steps, self.restarts, self.eot_samples
