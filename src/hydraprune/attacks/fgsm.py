"""The fast gradient sign method (arXiv:1412.6572)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from hydraprune.attacks.gradient import cross_entropy_of, pgd
from hydraprune.core.attack import Attack
from hydraprune.core.threat import ThreatModel


class FGSM(Attack):
    """A single step of length eps from the image up the cross-entropy: a sanity check, not a measure of robustness.

    For `l2` the step is the unit gradient times eps. Example: `{kind: fgsm}`.
    """

    kind: Literal["fgsm"] = "fgsm"

    @property
    def name(self) -> str:
        return "fgsm"

    def search(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: torch.Generator) -> Tensor:
        return pgd(model, x, threat, cross_entropy_of(y), steps=1, step_size=threat.eps, start="zero", rng=rng)
