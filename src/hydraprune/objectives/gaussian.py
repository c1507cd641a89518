"""Gaussian augmentation, the training of randomized smoothing (Cohen et al., arXiv:1902.02918)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hydraprune.core.objective import Batch, Context, Loss, Objective, accuracy
from hydraprune.core.spec import Number


def noise_like(x: Tensor, sigma: float, rng: torch.Generator, draws: int = 1) -> Tensor:
    """Gaussian noise (draws, *x.shape) of standard deviation `sigma`, in pixels of [0, 1]."""
    return sigma * torch.randn((draws, *x.shape), generator=rng, device=x.device, dtype=x.dtype)


class Gaussian(Objective):
    """Cross-entropy on images with fresh noise, `CE(f(x + sigma * n), y)`; noisy images are not clipped (section 3).

    Args:
        sigma: standard deviation of the noise, in pixels of [0, 1]; certify with the same.

    Sample: `objective: {kind: gaussian, sigma: 0.25}`
    """

    kind: Literal["gaussian"] = "gaussian"
    sigma: Number = Field(default=0.25, gt=0)

    def __call__(self, model: nn.Module, batch: Batch, ctx: Context) -> Loss:
        logits = model(batch.x + noise_like(batch.x, self.sigma, ctx.rng)[0]).float()
        loss = F.cross_entropy(logits, batch.y)
        return Loss(loss, {"accuracy": accuracy(logits, batch.y)})
