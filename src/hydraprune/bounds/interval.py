"""Boxes on the values of a layer, kept as ends or as centre and radius, whichever was computed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor


class Interval:
    """Elementwise bounds (B, ...). Give `lower` and `upper`, or `center` and `radius`; the rest follows on demand."""

    def __init__(self, **known: Tensor) -> None:
        self.__dict__.update(known)

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
        return next(iter(self.__dict__.values())).shape

    def __getitem__(self, batch: slice) -> Interval:
        return Interval(**{name: value[batch] for name, value in self.__dict__.items()})

    def map(self, positive: Callable[[Tensor], Tensor]) -> Interval:
        """The image under a linear map without negative coefficients."""
        if "radius" in self.__dict__:
            return Interval(center=positive(self.center), radius=positive(self.radius))
        return Interval(lower=positive(self.lower), upper=positive(self.upper))
