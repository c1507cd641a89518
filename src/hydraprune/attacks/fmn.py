"""Fast minimum-norm attack (arXiv:2102.12827, Algorithm 1)."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hydraprune.attacks.gradient import slope
from hydraprune.attacks.pgd import LOSSES
from hydraprune.core.attack import MinimumNorm
from hydraprune.core.spec import Number
from hydraprune.core.threat import PIXELS, ThreatModel, lengths, per_image


class FMN(MinimumNorm):
    """Gradient steps inside a ball that shrinks while the image is misclassified and grows while it is not.

    Args:
        steps: gradient steps.
        step_size: Euclidean length of the first step, in pixels of [0, 1]; it falls to a hundredth along a cosine.
        gamma: share by which the ball first shrinks or grows; it falls to 0.001 along a cosine.
        loss: `margin`, the paper's; `dlr` where logits differ in scale.

    Example: `{kind: fmn, steps: 200}`.
    """

    kind: Literal["fmn"] = "fmn"
    steps: int = Field(100, ge=1)
    step_size: Number = Field(1.0, gt=0)
    gamma: Number = Field(0.05, gt=0, lt=1)
    loss: Literal["margin", "dlr"] = "margin"

    @property
    def name(self) -> str:
        return f"fmn-{self.steps}" + ("-dlr" if self.loss == "dlr" else "")

    def closest(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: torch.Generator) -> Tensor:
        dual = 1 if threat.norm == "linf" else 2
        lowest, highest = PIXELS
        farthest = lengths(torch.maximum(x - lowest, highest - x), threat.order)
        radius, shortest = torch.full_like(farthest, math.inf), farthest
        delta = best = torch.zeros_like(x)
        found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for step in range(self.steps):
            gradient, logits = slope(model, (x + delta).requires_grad_(), partial(LOSSES[self.loss], y=y))
            loss, length = LOSSES[self.loss](logits, y), lengths(delta, threat.order)
            fooled = logits.argmax(1) != y
            closer = fooled & (length <= shortest)
            found = found | fooled
            best, shortest = torch.where(per_image(closer, x), delta, best), torch.where(closer, length, shortest)

            gamma = _cosine(self.gamma, 0.001, step / self.steps)
            border = length + loss.abs() / lengths(gradient, dual).clamp_min(1e-12)
            outside = torch.where(found, radius * (1 + gamma), border)
            radius = torch.where(fooled, torch.minimum(radius * (1 - gamma), shortest), outside).minimum(farthest)

            step_size = _cosine(self.step_size, self.step_size / 100, step / self.steps)
            delta = delta + step_size * gradient / per_image(lengths(gradient).clamp_min(1e-12), x)
            delta = (x + threat.shrink(delta, radius)).clamp(lowest, highest) - x
        # Where nothing was found the last iterate shows it, NaN included.
        return x + torch.where(per_image(found, x), best, delta)


def _cosine(first: float, last: float, share: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2
