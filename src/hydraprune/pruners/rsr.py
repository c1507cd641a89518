"""Robust Sparse Regularization: noise on each channel's weights and a lasso (Rakin et al., arXiv:1905.13074)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hydraprune.core.seeds import generator
from hydraprune.core.spec import Number
from hydraprune.masks.source import FixedMask, MaskSource, Over
from hydraprune.masks.structures import Filter
from hydraprune.masks.view import MaskView
from hydraprune.pruners.base import Moving
from hydraprune.pruners.moving import drawn
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.pruning import Pruning


class Noisy(FixedMask):
    """`weight + alpha * noise` in training mode, masked; alpha, one for each output channel, trains with the weight.

    Attributes:
        noise: what alpha scales, in the weight's shape; None is none.
    """

    over: ClassVar[Over] = "weights"

    def __init__(self, weight: Tensor, channels: Filter, alpha: float) -> None:
        super().__init__(torch.ones_like(weight, dtype=torch.bool))
        self.channels = channels
        self.alpha = nn.Parameter(weight.new_full((channels.groups(tuple(weight.shape)),), alpha))
        self.noise: Tensor | None = None

    def forward(self, weight: Tensor) -> Tensor:
        if self.training and self.noise is not None:
            weight = weight + self.channels.expand(self.alpha, tuple(weight.shape)) * self.noise
        return super().forward(weight)


class RSR(Moving):
    """Trains dense weights w as `w + alpha * eta` under the lasso `l1 * sum|w|`, then prunes (arXiv:1905.13074).

    eta is normal with the standard deviation of the layer's weights, which is a constant of the gradient. alpha is
    trained, one for each output channel. The smallest |w| are removed after the last step, the paper's under one
    threshold over all layers (budget `global`); fine-tune after it. Unlike in the paper, the noise ends with the stage,
    and networks in evaluation mode have none: the paper draws it in inference too. A step draws once, and its attack
    sees the same draw. The optimizer's weight decay applies to alpha as to every tensor.

    Args:
        l1: strength of the lasso on prunable weights. The default is ours, as the paper's was not at hand: with
            momentum 0.9 it can move a weight by 1e-3 times the sum of all steps' learning rates, 0.04 in 20 epochs of
            CIFAR-10 with a cosine from 0.01. A shorter stage wants a stronger one.
        alpha: at the start; 0.25 is that of parametric noise injection (arXiv:1811.09310), which the method builds on.

    Sample: `pruner: {kind: rsr}` with `budget: {kind: global, sparsity: 0.9}`, in a stage over weights
    """

    kind: Literal["rsr"] = "rsr"
    l1: Number = Field(default=1e-4, ge=0)
    alpha: Number = Field(default=0.25, ge=0)

    def begin(self, pruning: Pruning, probe: Probe) -> Mapping[str, MaskSource]:
        pruning.memory["seed"] = drawn(probe.rng)
        channels = {name: Filter().on(module) for name, (module, *_) in pruning.view.modules.items()}
        return {n: Noisy(weight, channels[n], self.alpha) for n, weight in pruning.view.weights().items()}

    def ready(self, pruning: Pruning) -> None:
        weights, rng = pruning.view.weights(), None
        for name, source in noisy(pruning.view).items():
            weight = weights[name]
            rng = rng or generator(int(pruning.memory["seed"]), pruning.clock.step, device=weight.device)
            noise = torch.randn(weight.shape, generator=rng, device=weight.device, dtype=weight.dtype)
            # Not the unbiased one, which a layer of a single weight does not have.
            source.noise = noise.mul_(weight.std(correction=0))

    def step(self, pruning: Pruning) -> Iterator[None]:
        for weight in pruning.weights.values():
            if weight.grad is not None:
                weight.grad.add_(weight.sign(), alpha=self.l1)
        yield
        self.ready(pruning)

    def finish(self, pruning: Pruning) -> None:
        for source in noisy(pruning.view).values():
            source.noise = None
        pruning.move(pruning.selection.masks(pruning.view.weights()))


def noisy(view: MaskView) -> dict[str, Noisy]:
    """The masks that draw noise."""
    return {name: source for name, source in view.sources.items() if isinstance(source, Noisy)}
