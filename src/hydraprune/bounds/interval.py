"""Boxes on the values of a layer, kept as ends or as centre and radius, whichever was computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


class Interval:
    """Elementwise bounds (B, ...). Give `lower` and `upper`, or `center` and `radius`; the rest follows on demand."""

    def __init__(self, **known: Tensor) -> None:
        self.__dict__.update(known)

    @classmethod
    def joined(cls, boxes: Sequence[Interval]) -> Interval:
        """The boxes of several batches as those of one."""
        both = ("center", "radius") if all("radius" in box.__dict__ for box in boxes) else ("lower", "upper")
        return cls(**{name: torch.cat([getattr(box, name) for box in boxes]) for name in both})

    @cached_property
    def lower(self) -> Tensor:
        return self.center - self.radius

    @cached_property
    def upper(self) -> Tensor:
        return self.center + self.radius

    @cached_property
    def center(self) -> Tensor:
        return torch.lerp(self.lower, self.upper, 0.5)

    @cached_property
    def radius(self) -> Tensor:
        return (self.upper - self.lower).mul_(0.5)

    @property
    def shape(self) -> torch.Size:
        return self._any.shape

    @property
    def device(self) -> torch.device:
        return self._any.device

    @property
    def _any(self) -> Tensor:
        return next(iter(self.__dict__.values()))

    def __getitem__(self, batch: slice) -> Interval:
        return Interval(**{name: value[batch] for name, value in self.__dict__.items()})

    def map(self, positive: Callable[[Tensor], Tensor]) -> Interval:
        """The image under a linear map without negative coefficients."""
        if "radius" in self.__dict__:
            return Interval(center=positive(self.center), radius=positive(self.radius))
        return Interval(lower=positive(self.lower), upper=positive(self.upper))

    def clipped(self) -> Interval:
        """The image under ReLU."""
        if "radius" in self.__dict__:
            center, radius = _ClippedBall.apply(self.center, self.radius)
            return Interval(center=center, radius=radius)
        return Interval(lower=self.lower.relu(), upper=self.upper.relu())


class _ClippedBall(torch.autograd.Function):
    """ReLU of centre and radius by hand: passes over memory are what interval training waits for."""

    @staticmethod
    def forward(ctx: Any, center: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper = (center - radius).relu_(), (center + radius).relu_()
        ctx.save_for_backward(lower, upper)
        return torch.lerp(lower, upper, 0.5), (upper - lower).mul_(0.5)

    @staticmethod
    def backward(ctx: Any, center: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper = ctx.saved_tensors
        down, up = _gated(center - radius, lower), _gated(center + radius, upper)
        return torch.lerp(down, up, 0.5), up.sub_(down).mul_(0.5)


def _gated(gradient: Tensor, clipped: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward.grad_input(gradient, clipped, 0, grad_input=gradient)
