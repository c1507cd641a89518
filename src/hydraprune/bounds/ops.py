"""The operations of a network: their interval arithmetic, and their way back for linear bounds."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from hydraprune.bounds.interval import Interval
from hydraprune.bounds.rows import Pair, Rows
from hydraprune.core.errors import SpecError

Slope = Literal["adaptive", "zero", "one", "same"]
"""Lower line of an unstable ReLU: slope 1 where u > -l and else 0, always 0, always 1, or that of the upper line."""


class Ends:
    """What rows have gathered on their way, (B or 1, rows): they lie within `reach` of `middle` plus what is left.

    With lower lines unlike the upper ones, only `middle - reach` is a bound.
    """

    def __init__(self) -> None:
        self.middle: Tensor | float = 0.0
        self.reach: Tensor | float = 0.0

    def add(self, sums: Tensor, reach: Tensor | float = 0.0) -> None:
        self.middle = self.middle + sums
        self.reach = self.reach + reach


def _magnitude(factor: Tensor | float) -> Tensor | float:
    return factor.abs() if isinstance(factor, Tensor) else abs(factor)


Back = Callable[[Rows, Ends], tuple[Rows, ...]]
"""Rows over the output to rows over each input that bound them from below; constants go to the ends."""


class Op(ABC):
    """One operation, with the weights that it has in this pass. All inputs and outputs are (B, *shape)."""

    elementwise = False
    """Whether each output depends on one input, and no two on the same."""

    @abstractmethod
    def interval(self, *inputs: Interval) -> Interval:
        """A box around the outputs."""

    @abstractmethod
    def back(self, slope: Slope, *inputs: Interval) -> Back:
        """The way back, by linear bounds that hold where the inputs lie in their boxes."""


@dataclass(frozen=True)
class Linear(Op):
    """`x @ weight.T + bias` on (B, ..., N)."""

    weight: Tensor
    bias: Tensor | None

    def interval(self, *inputs: Interval) -> Interval:
        center = F.linear(inputs[0].center, self.weight, self.bias)
        return Interval(center=center, radius=F.linear(inputs[0].radius, self.weight.abs()))

    def back(self, slope: Slope, *inputs: Interval) -> Back:
        def back(rows: Rows, ends: Ends) -> tuple[Rows, ...]:
            rows = rows.dense()
            if self.bias is not None:
                ends.add(rows.dot(self.bias.expand(1, *rows.values.shape[3:])))
            return (Rows(rows.values @ self.weight),)

        return back


@dataclass(frozen=True)
class Conv(Op):
    """Convolution of (B, C, H, W) with zero padding. Average pooling is one, too."""

    weight: Tensor
    bias: Tensor | None
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def interval(self, *inputs: Interval) -> Interval:
        how = (self.stride, self.padding, self.dilation, self.groups)
        center = F.conv2d(inputs[0].center, self.weight, self.bias, *how)
        return Interval(center=center, radius=F.conv2d(inputs[0].radius, self.weight.abs(), None, *how))

    def back(self, slope: Slope, *inputs: Interval) -> Back:
        height, width = inputs[0].shape[2:]

        def back(rows: Rows, ends: Ends) -> tuple[Rows, ...]:
            rows = rows.cleaned()
            if self.bias is not None:
                sums = rows.values.sum((-2, -1)) @ self.bias
                ends.add(sums.expand(-1, rows.positions, -1).flatten(1))
            if rows.grid is None:
                return (Rows(self._transposed(rows.values, (height, width))),)
            (down, across), (top, left) = rows.grid.stride, rows.grid.pad
            grid = rows.grid._replace(
                side=(height, width),
                stride=(down * self.stride[0], across * self.stride[1]),
                pad=(top * self.stride[0] + self.padding[0], left * self.stride[1] + self.padding[1]),
            )
            windows = Rows(self._transposed(rows.values, None), grid, clean=False)
            area = math.prod(windows.values.shape[-2:])
            return (windows if area < height * width else windows.dense(),)

        return back

    def _transposed(self, values: Tensor, side: Pair | None) -> Tensor:
        """The transposed convolution of (B, P, S, C, h, w), onto a map of `side`, or onto all that it reaches."""
        padding, extra = (0, 0), (0, 0)
        if side is not None:
            padding = self.padding
            reached = [
                (size - 1) * stride - 2 * pad + dilation * (kernel - 1) + 1
                for size, stride, pad, dilation, kernel in zip(
                    values.shape[-2:], self.stride, padding, self.dilation, self.weight.shape[-2:], strict=True
                )
            ]
            extra = (side[0] - reached[0], side[1] - reached[1])
        images = values.flatten(0, 2)
        images = F.conv_transpose2d(images, self.weight, None, self.stride, padding, extra, self.groups, self.dilation)
        return images.unflatten(0, values.shape[:3])


@dataclass(frozen=True)
class Scale(Op):
    """`x * factor + shift`; both broadcast to x without enlarging it, and are the same for every image."""

    factor: Tensor | float
    shift: Tensor | float

    elementwise = True

    def interval(self, *inputs: Interval) -> Interval:
        (x,) = inputs
        return Interval(center=x.center * self.factor + self.shift, radius=x.radius * _magnitude(self.factor))

    def back(self, slope: Slope, *inputs: Interval) -> Back:
        like = inputs[0].center[:1]
        factor, shift = (torch.as_tensor(t, dtype=like.dtype).expand_as(like) for t in (self.factor, self.shift))

        def back(rows: Rows, ends: Ends) -> tuple[Rows, ...]:
            ends.add(rows.dot(shift))
            return (rows.times(factor),)

        return back


@dataclass(frozen=True)
class Add(Op):
    """`x + sign * other`; interval arithmetic forgets what the two share."""

    sign: int

    def interval(self, *inputs: Interval) -> Interval:
        x, other = inputs
        center = torch.add(x.center, other.center, alpha=self.sign)
        return Interval(center=center, radius=x.radius + other.radius)

    def back(self, slope: Slope, *inputs: Interval) -> Back:
        return lambda rows, ends: (rows, replace(rows, values=rows.values * self.sign))


@dataclass(frozen=True)
class Cat(Op):
    """Concatenation along `dim`, at least 1."""

    dim: int

    def interval(self, *inputs: Interval) -> Interval:
        center = torch.cat([x.center for x in inputs], self.dim)
        return Interval(center=center, radius=torch.cat([x.radius for x in inputs], self.dim))

    def back(self, slope: Slope, *inputs: Interval) -> Back:
        sizes = [x.shape[self.dim] for x in inputs]

        def back(rows: Rows, ends: Ends) -> tuple[Rows, ...]:
            rows = rows if self.dim == 1 else rows.dense()
            return tuple(replace(rows, values=part) for part in rows.values.split(sizes, self.dim + 2))

        return back


@dataclass(frozen=True)
class Reshape(Op):
    """Another shape for the elements of each image, in the same order."""

    function: Callable[[Tensor], Tensor]

    elementwise = True

    def interval(self, *inputs: Interval) -> Interval:
        return inputs[0].map(self.function)

    def back(self, slope: Slope, *inputs: Interval) -> Back:
        shape = inputs[0].shape[1:]
        return lambda rows, ends: (Rows(rows.dense().values.flatten(3).unflatten(3, shape)),)


@dataclass(frozen=True)
class Permute(Op):
    """Axes in another order, `dims[0]` being 0."""

    dims: tuple[int, ...]

    elementwise = True

    def interval(self, *inputs: Interval) -> Interval:
        return inputs[0].map(lambda t: t.permute(self.dims))

    def back(self, slope: Slope, *inputs: Interval) -> Back:
        order = [0, 1, *(self.dims.index(axis) + 2 for axis in range(len(self.dims)))]
        return lambda rows, ends: (Rows(rows.dense().values.permute(order)),)


@dataclass(frozen=True)
class Mean(Op):
    """Mean over the axes `dims`, each at least 1."""

    dims: tuple[int, ...]
    keepdim: bool

    def interval(self, *inputs: Interval) -> Interval:
        return inputs[0].map(lambda t: t.mean(self.dims, self.keepdim))

    def back(self, slope: Slope, *inputs: Interval) -> Back:
        shape = inputs[0].shape[1:]
        kept = [1 if axis + 1 in self.dims else size for axis, size in enumerate(shape)]
        count = math.prod(shape) // math.prod(kept)

        def back(rows: Rows, ends: Ends) -> tuple[Rows, ...]:
            values = rows.dense().values
            return (Rows((values / count).reshape(*values.shape[:3], *kept).expand(*values.shape[:3], *shape)),)

        return back


@dataclass(frozen=True)
class ReLU(Op):
    """max(x, 0), between two lines where its sign is open (arXiv:1811.00866, section 3.2)."""

    def interval(self, *inputs: Interval) -> Interval:
        return Interval(lower=inputs[0].lower.relu(), upper=inputs[0].upper.relu())

    def back(self, slope: Slope, *inputs: Interval) -> Back:
        lower, upper = inputs[0].lower, inputs[0].upper
        unstable = (lower < 0) & (upper > 0)
        # A width of zero must not be divided by, not even in a branch that is not taken: its gradient would be NaN.
        share = torch.where(unstable, upper / torch.where(unstable, upper - lower, 1), (lower >= 0).to(lower))
        shift = torch.where(unstable, -lower * share, 0)
        if slope == "same":

            def parallel(rows: Rows, ends: Ends) -> tuple[Rows, ...]:
                half = shift / 2
                ends.add(rows.dot(half), rows.magnitude().dot(half))
                return (rows.times(share),)

            return parallel
        chosen = {"adaptive": upper > -lower, "zero": False, "one": True}[slope]
        least = torch.where(unstable, torch.as_tensor(chosen, device=lower.device).to(lower), share.detach())

        def back(rows: Rows, ends: Ends) -> tuple[Rows, ...]:
            negative = replace(rows, values=rows.values.clamp_max(0))
            ends.add(negative.dot(shift))
            low, more = rows.align(least), rows.align(share - least)
            return (Rows(torch.addcmul(rows.values * low, negative.values, more), rows.grid),)

        return back


@dataclass(frozen=True)
class MaxPool(Op):
    """Largest value of each window. Linear bounds exist for windows that tile the map, unpadded."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    ceil: bool

    def _pool(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, self.kernel, self.stride, self.padding, self.dilation, self.ceil)

    def interval(self, *inputs: Interval) -> Interval:
        return Interval(lower=self._pool(inputs[0].lower), upper=self._pool(inputs[0].upper))

    def back(self, slope: Slope, *inputs: Interval) -> Back:
        if (self.stride, self.padding, self.dilation, self.ceil) != (self.kernel, (0, 0), (1, 1), False):
            raise SpecError(
                f"max pooling by {self.kernel} with stride {self.stride} and padding {self.padding} has interval "
                "bounds only; use the bound 'ibp', or windows that tile the map"
            )
        lower, upper = inputs[0].lower, inputs[0].upper
        most, index = F.max_pool2d(lower, self.kernel, return_indices=True)
        picked = torch.zeros_like(lower).flatten(2).scatter(2, index.flatten(2), 1).view_as(lower)
        # Where the picked input is surely the largest the pooling is that input, elsewhere at most the largest end.
        sure = most >= self._pool(torch.where(picked > 0, -torch.inf, upper))
        cap = torch.where(sure, 0, self._pool(upper))
        tall, wide = lower.shape[2:]

        def back(rows: Rows, ends: Ends) -> tuple[Rows, ...]:
            rows = rows.dense()
            negative = Rows(rows.values.clamp_max(0))
            ends.add(negative.dot(cap))
            values = rows.values - negative.values * rows.align((~sure).to(lower))
            values = values.repeat_interleave(self.kernel[0], -2).repeat_interleave(self.kernel[1], -1)
            rest = (0, wide - values.shape[-1], 0, tall - values.shape[-2])
            return (Rows(F.pad(values, rest)).times(picked),)

        return back
