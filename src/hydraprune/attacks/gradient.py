"""Projected gradient ascent on images: the inner maximisation of robust training."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hydraprune.core.errors import SpecError
from hydraprune.core.threat import ThreatModel

SampleLoss = Callable[[Tensor], Tensor]
"""Logits (B, K), float32 -> what the adversary wants large, (B,)."""

Start = Literal["zero", "uniform", "gaussian"]


def pgd(
    model: nn.Module,
    x: Tensor,
    threat: ThreatModel,
    loss: SampleLoss,
    *,
    steps: int,
    step_size: float | None = None,
    start: Start,
    rng: torch.Generator,
) -> Tensor:
    """Images near `x` that make `loss` large, by projected steepest ascent (arXiv:1706.06083, section 2).

    Only the images are differentiated: the modes, gradients and buffers of `model` stay as they are. One step of
    1.25 eps from `uniform` is the attack of fast adversarial training (arXiv:2001.03994).

    Args:
        model: a network in evaluation mode that returns logits (B, K).
        x: images (B, C, H, W) in [0, 1].
        threat: ball and pixel range that every step is projected into.
        loss: per-sample loss of the logits.
        steps: number of gradient steps, at least 1.
        step_size: length of a step in the threat's norm, in pixels of [0, 1]; None takes `step_length`.
        start: the image itself, a uniform point of the ball, or the image plus noise of deviation 0.001, whatever eps
            and unclipped (as TRADES, arXiv:1901.08573, starts where the gradient vanishes).
        rng: source of the noise, on the device of `x`.

    Returns:
        (B, C, H, W) images inside ball and pixel range, without gradient.
    """
    adversarial = _first(x, threat, start, rng)
    step_size = step_length(threat, steps) if step_size is None else step_size
    for _ in range(steps):
        adversarial, _ = ascend(model, x, adversarial, threat, loss, step_size)
    return adversarial


def step_length(threat: ThreatModel, steps: int, reach: float = 2.5) -> float:
    """The length of a step with which `steps` of them go `reach` radii, in pixels of [0, 1].

    2.5 let an attack cross the ball from any start and move along its border (arXiv:1706.06083, section 5).
    """
    return reach * threat.eps / steps


def cross_entropy_of(y: Tensor) -> SampleLoss:
    """Large where an image is classified as anything but its label, of `y` (B,)."""
    return partial(F.cross_entropy, target=y, reduction="none")


def ascend(
    model: nn.Module,
    x: Tensor,
    adversarial: Tensor,
    threat: ThreatModel,
    loss: SampleLoss,
    step_size: float,
    *,
    samples: int = 1,
) -> tuple[Tensor, Tensor]:
    """One projected step from `adversarial` (B, C, H, W), and the logits (B, K) that it was computed from.

    With several `samples` gradient and logits are means over as many passes, for a network that draws random numbers
    (expectation over transformation, arXiv:1802.00420).
    """
    adversarial = adversarial.detach().requires_grad_()
    gradient, logits = slope(model, adversarial, loss)
    for _ in range(samples - 1):
        another, more = slope(model, adversarial, loss)
        gradient, logits = gradient + another, logits + more
    # The sign of NaN is 0: hidden, a broken gradient would leave the image where it is and make it look robust.
    direction = threat.steepest(gradient).add_(gradient, alpha=0)
    return threat.project(x, direction.mul_(step_size).add_(adversarial.detach())), logits / samples


def slope(model: nn.Module, x: Tensor, loss: SampleLoss) -> tuple[Tensor, Tensor]:
    """The gradient of `loss` at images `x` (B, C, H, W) that require it, and the logits (B, K), float32."""
    with torch.enable_grad():
        logits = model(x).float()
        (gradient,) = torch.autograd.grad(loss(logits).sum(), x)
    return gradient, logits.detach()


def _first(x: Tensor, threat: ThreatModel, start: Start, rng: torch.Generator) -> Tensor:
    match start:
        case "zero":
            return x
        case "uniform":
            return threat.sample(x, rng)
        case "gaussian":
            return x + 0.001 * torch.randn(x.shape, generator=rng, device=x.device, dtype=x.dtype)
        case _:
            raise SpecError(f"unknown start {start!r}; known: zero, uniform, gaussian")
