"""SmoothAdv: adversarial training of a smoothed network (Salman et al., arXiv:1906.04584)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hydraprune.attacks.gradient import cross_entropy_of, pgd, step_length
from hydraprune.core.objective import Batch, Context, Loss, Objective, accuracy
from hydraprune.core.spec import Number
from hydraprune.objectives.gaussian import noise_like


class _Smoothed(nn.Module):
    """The mean of `net`'s softmax over the noise (m, B, C, H, W), as logits (B, K) of images (B, C, H, W)."""

    def __init__(self, net: nn.Module, noise: Tensor) -> None:
        super().__init__()
        self.net, self.noise = net, noise

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net((x + self.noise).flatten(0, 1)).float()
        return F.log_softmax(logits, 1).unflatten(0, self.noise.shape[:2]).logsumexp(0)


class SmoothAdv(Objective):
    """Mean of `CE(f(x' + n_i), y)` over draws n_1..n_m of the noise, x' being the worst image for the smoothed network.

    The attack maximises `-log mean_i softmax(f(x' + n_i))_y` in the l2 ball: the log of the mean, not the mean of the
    logs. It starts at the image, keeps its draws from step to step, and the loss is taken at the same draws. x' stays
    in [0, 1]; noisy images are not clipped.

    Args:
        sigma: standard deviation of the noise, in pixels of [0, 1]; certify with the same.
        draws: draws of noise per image, m; each is one more copy of the batch in every pass.
        steps: steps of the attack.
        step_size: length of each in l2, in pixels of [0, 1]; None takes the authors' `2 * eps / steps`.

    Raises:
        SpecError: where the threat is not `l2`, the norm that smoothing certifies.

    Sample: `objective: {kind: smoothadv, sigma: 0.25, draws: 2}` with `threat: {norm: l2, eps: 64/255}`
    """

    kind: Literal["smoothadv"] = "smoothadv"
    sigma: Number = Field(default=0.25, gt=0)
    draws: int = Field(default=2, ge=1)
    steps: int = Field(default=10, ge=1)
    step_size: Number | None = Field(default=None, gt=0)

    def __call__(self, model: nn.Module, batch: Batch, ctx: Context) -> Loss:
        threat = ctx.adversary(self.kind, "l2")
        noise = noise_like(batch.x, self.sigma, ctx.rng, self.draws)
        adversarial = pgd(
            _Smoothed(ctx.frozen(model), noise),
            batch.x,
            threat,
            cross_entropy_of(batch.y),
            steps=self.steps,
            step_size=step_length(threat, self.steps, 2) if self.step_size is None else self.step_size,
            start="zero",
            rng=ctx.rng,
        )
        logits = model((adversarial + noise).flatten(0, 1)).float()
        labels = batch.y.repeat(self.draws)
        loss = F.cross_entropy(logits, labels)
        return Loss(loss, {"robust_accuracy": accuracy(logits, labels)})
