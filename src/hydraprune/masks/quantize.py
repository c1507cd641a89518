"""Training that sees the rounding to come: int8 weights and activations inside of the objective.

Rounding whose gradient passes straight through (arXiv:1308.3432), with the grids and the ranges of arXiv:1712.05877.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from hydraprune.core.errors import PruningError
from hydraprune.core.spec import some
from hydraprune.masks.source import FixedMask, MaskSource
from hydraprune.masks.view import PRUNABLE, MaskView

LEVELS = 127
"""Of weights, on each side of 0."""
STEPS = 255
"""Of activations, from the lower end of their range to the upper one."""
MOMENTUM = 0.99
"""What stays of a range at each training pass; the rest is what that pass has seen."""


def scales(weight: Tensor) -> Tensor:
    """What a level stands for in each channel (C, 1, ...) of a weight (C, ...); 0 where a weight has nothing but zeros.

    The same as packed int8 files have (`core/packing.py`), which therefore hold a rounded weight exactly.
    """
    largest = weight.abs().flatten(1).amax(1)
    most = largest.max()
    halvings = (most.double() / largest).log2().floor().nan_to_num(0, 0, 0).clamp(0, 255)
    return torch.ldexp(most / LEVELS, -halvings.float()).view(-1, *[1] * (weight.dim() - 1))


class Rounded(torch.autograd.Function):
    """A weight on its grid; the gradient passes as if it had not been rounded."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        scale = scales(weight)
        return (weight / torch.where(scale > 0, scale, 1)).round().clamp(-LEVELS, LEVELS) * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Quantized(MaskSource):
    """A masked weight on the grid of int8, and the ranges of what its layers multiply it with.

    Args:
        mask: the fixed mask, under which the weight is rounded; zeros stay zero.
        layers: how many layers share the weight.
        device: of the weight.
    """

    low: Tensor
    high: Tensor

    def __init__(self, mask: FixedMask, layers: int, device: torch.device) -> None:
        super().__init__()
        self.mask = mask
        self.register_buffer("low", torch.zeros(layers, device=device))
        self.register_buffer("high", torch.zeros(layers, device=device))

    def current(self) -> Tensor:
        return self.mask.current()

    def forward(self, weight: Tensor) -> Tensor:
        rounded: Tensor = Rounded.apply(self.mask(weight))  # type: ignore[no-untyped-call]
        return rounded

    def settled(self, weight: Tensor) -> Tensor:
        return self(weight)

    @torch.no_grad()
    def watch(self, layer: int, x: Tensor) -> None:
        """Move the range of a layer's inputs towards that of `x`; 0 is always in it."""
        seen = torch.stack([x.amin().clamp(max=0), x.amax().clamp(min=0)]).to(self.low)
        known = self.low[layer] < self.high[layer]
        for end, value in zip((self.low, self.high), seen, strict=True):
            end[layer] = torch.where(known, end[layer].lerp(value, 1 - MOMENTUM), value)

    def rounded(self, layer: int, x: Tensor) -> Tensor:
        """`x` on the grid of its layer's range, its gradient passing where it lies inside; as it is without a range."""
        low, high = self.low[layer], self.high[layer]
        if not low < high:
            return x
        scale = (high - low) / STEPS
        zero = (-low / scale).round().to(torch.int32)
        found = torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, 0, STEPS)
        return found.to(x.dtype)


class Inputs:
    """Goes before a layer: rounds what it is given, by ranges that training passes of the live network move.

    Copies of the network share it, so that attacks see the ranges of the moment.
    """

    def __init__(self, source: Quantized, layer: int) -> None:
        self.source, self.layer = source, layer

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *others = inputs
        if module.training:
            self.source.watch(self.layer, x.detach())
        return (self.source.rounded(self.layer, x), *others)


@contextmanager
def quantized(model: nn.Module) -> Iterator[None]:
    """Inside, `model` and every copy of it compute as in int8, with gradients; train it there over its weights.

    Every weight that can be pruned is rounded to 255 levels, symmetric, with a scale for each output channel; zeros
    stay zero. What enters convolutions and linear layers is rounded to 256 levels between ends that follow the least
    and the largest input of the passes in training mode; before the first of these it is not rounded. Bounds of
    `verify` and of certified objectives see rounded weights, but activations as they are.

    Afterwards the weights are the rounded ones, so that a packed int8 file holds them exactly, and nothing else is
    rounded any more. If what is inside fails, the weights are those of the moment, not rounded.

    Args:
        model: any network, in floating point, masked or not; masks stay what they are.

    Raises:
        PruningError: if a mask is still learned, or the network is quantized already.
    """
    view = MaskView(model)
    if moving := [name for name, source in view.sources.items() if not isinstance(source, FixedMask)]:
        raise PruningError(
            f"the masks of {some(moving)} are still learned, or rounded already; finish what comes first, or call "
            "MaskView(model).freeze()"
        )
    before, weights = view.sources, view.weights()
    masks = {name: FixedMask(torch.ones_like(weight, dtype=torch.bool)) for name, weight in weights.items()}
    masks |= {name: source for name, source in before.items() if isinstance(source, FixedMask)}
    sources = {n: Quantized(mask, len(view.modules[n]), weights[n].device) for n, mask in masks.items()}
    view.attach(sources)
    hooks = [
        layer.register_forward_pre_hook(Inputs(source, number))
        for name, source in sources.items()
        for number, layer in enumerate(view.modules[name])
        if isinstance(layer, PRUNABLE)
    ]
    try:
        yield
        with torch.no_grad():
            for name, weight in view.stored().items():
                weight.copy_(sources[name].settled(weight))
    finally:
        for hook in hooks:
            hook.remove()
        view.attach(before)
        view.detach(name for name in sources if name not in before)
