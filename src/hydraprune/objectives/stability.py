"""Stability training under Gaussian noise (Zheng et al., arXiv:1604.04326), HYDRA's for randomized smoothing."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import nn

from hydraprune.core.objective import Batch, Context, Loss, Objective, accuracy
from hydraprune.core.spec import Number
from hydraprune.objectives.gaussian import noise_like
from hydraprune.objectives.trades import divergence


class Stability(Objective):
    """`CE(f(x), y) + beta * KL(f(x) || f(x + sigma * n))`, with gradients through both terms.

    Clean and noisy images (which are not clipped) each pass the network in training mode. With unlabelled data this is
    the smoothing objective of arXiv:1905.13736, which HYDRA (arXiv:2002.10509) prunes with.

    Args:
        beta: weight of the stability term, at least 0.
        sigma: standard deviation of the noise, in pixels of [0, 1]; certify with the same.

    Sample: `objective: {kind: stability, beta: 6, sigma: 0.25}`
    """

    kind: Literal["stability"] = "stability"
    beta: Number = Field(default=6.0, ge=0)
    sigma: Number = Field(default=0.25, gt=0)

    def __call__(self, model: nn.Module, batch: Batch, ctx: Context) -> Loss:
        noise = noise_like(batch.x, self.sigma, ctx.rng)[0]
        natural, noisy = model(batch.x).float(), model(batch.x + noise).float()
        clean = F.cross_entropy(natural, batch.y)
        stability = divergence(F.log_softmax(natural, 1), noisy).mean()
        metrics = {
            "accuracy": accuracy(natural, batch.y),
            "noisy_accuracy": accuracy(noisy, batch.y),
            "clean_loss": clean.detach(),
            "stability_loss": stability.detach(),
        }
        return Loss(clean + self.beta * stability, metrics)
