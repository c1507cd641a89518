"""The operations of a network: their interval arithmetic, and their way back for linear bounds."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from hydraprune.bounds.interval import Interval
from hydraprune.bounds.rows import Pair, Rows, flat, unflat
from hydraprune.core.errors import SpecError

Slope = Literal["adaptive", "zero", "one", "same"]
"""Lower line of an unstable ReLU: slope 1 where u > -l and else 0, always 0, always 1, or that of the upper line."""


class Ends:
    """Constants that rows have gathered on their way, (B or 1, rows): `middle + reach` bounds them from above.

    As long as all lines were parallel, `middle - reach` bounds them from below.
    """

    def __init__(self) -> None:
        self.middle = self.reach = torch.zeros(())

    def add(self, sums: Tensor, reach: Tensor | float = 0.0) -> None:
        self.middle = self.middle + sums
        self.reach = self.reach + reach


Back = Callable[[Rows, Ends], tuple[Rows, ...]]
"""Rows over the output to rows over each input that bound them from above; constants go to the ends."""


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

    @property
    def span(self) -> Pair:
        """Rows and columns from the first to the last input of an output."""
        down, across = (step * (size - 1) + 1 for step, size in zip(self.dilation, self.weight.shape[2:], strict=True))
        return down, across

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
        """The transposed convolution of (B, P, S, C, h, w): onto a map of `side`, or onto all that the pieces reach."""
        padding, border = (0, 0), (0, 0)
        if side is not None:
            padding, border = self.padding, (self._border(0, side, values), self._border(1, side, values))
        # Strided ones take several times as long in any other order of memory.
        images = values.flatten(0, 2).contiguous(memory_format=torch.channels_last)
        images = F.conv_transpose2d(images, self.weight, None, self.stride, padding, border, self.groups, self.dilation)
        return images.unflatten(0, values.shape[:3])

    def _border(self, axis: int, side: Pair, values: Tensor) -> int:
        """Rows, or columns, at the end of the map that no window reaches, because the stride leaves them over."""
        return side[axis] + 2 * self.padding[axis] - self.span[axis] - (values.shape[axis - 2] - 1) * self.stride[axis]


@dataclass(frozen=True)
class Scale(Op):
    """`x * factor + shift`, numbers or tensors that broadcast to x, the same for every image."""

    factor: Any
    shift: Any

    elementwise = True

    def interval(self, *inputs: Interval) -> Interval:
        center = inputs[0].center * self.factor + self.shift
        return Interval(center=center, radius=inputs[0].radius * abs(self.factor))

    def back(self, slope: Slope, *inputs: Interval) -> Back:
        like = inputs[0].center[:1]
        constants = (torch.as_tensor(t, dtype=like.dtype, device=like.device) for t in (self.factor, self.shift))
        factor, shift = (constant.expand_as(like) for constant in constants)

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
        return inputs[0].clipped()

    def lines(self, box: Interval) -> tuple[Tensor, Tensor, Tensor]:
        """Where the sign is open, and slope and height of the upper line, each (B, *shape)."""
        lower, upper = box.lower, box.upper
        unstable = (lower < 0) & (upper > 0)
        # A width of zero must not be divided by, not even in a branch that is not taken: its gradient would be NaN.
        share = torch.where(unstable, upper / torch.where(unstable, upper - lower, 1), (lower >= 0).to(lower))
        return unstable, share, torch.where(unstable, -lower * share, 0)

    def back(self, slope: Slope, *inputs: Interval) -> Back:
        lower, upper = inputs[0].lower, inputs[0].upper
        unstable, share, shift = self.lines(inputs[0])
        if slope == "same":

            def parallel(rows: Rows, ends: Ends) -> tuple[Rows, ...]:
                half = shift / 2
                ends.add(rows.dot(half), rows.magnitude().dot(half))
                return (rows.times(share),)

            return parallel
        chosen = {"adaptive": upper > -lower, "zero": False, "one": True}[slope]
        least = torch.where(unstable, torch.as_tensor(chosen, device=lower.device).to(lower), share.detach())

        def back(rows: Rows, ends: Ends) -> tuple[Rows, ...]:
            low, more, constant = (rows.align(layer) for layer in (least, share - least, shift))
            values, sums = _BetweenLines.apply(rows.values, low, more, constant)
            ends.add(sums.expand(-1, rows.positions, -1).flatten(1))
            return (Rows(values, rows.grid),)

        return back


class _BetweenLines(torch.autograd.Function):
    """`values * low + relu(values) * more`, and (B, P, S) sums of `relu(values) * constant`, all (B, P, S, *piece).

    By hand, as in training these passes over memory cost as much as the convolutions between them.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, low: Tensor, more: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
        positive = values.relu()
        ctx.save_for_backward(positive, low, more, constant)
        sums = flat(constant) @ flat(positive).transpose(2, 3)
        return (values * low).addcmul_(positive, more), sums.squeeze(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, sums: Tensor) -> tuple[Tensor | None, ...]:
        positive, low, more, constant = ctx.saved_tensors
        to_constant = unflat(sums.unsqueeze(2) @ flat(positive), constant).sum_to_size(constant.shape)
        sums = sums.view(*sums.shape, *[1] * (positive.dim() - 3))
        through = torch.addcmul(gradient * more, sums, constant)
        through = torch.ops.aten.threshold_backward(through, positive.expand_as(through), 0)
        to_values = through.addcmul_(gradient, low).sum_to_size(positive.shape)
        return to_values, None, (positive * gradient).sum_to_size(more.shape), to_constant


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
            positive = Rows(rows.values.relu())
            ends.add(positive.dot(cap))
            values = rows.values - positive.values * rows.align((~sure).to(lower))
            values = values.repeat_interleave(self.kernel[0], -2).repeat_interleave(self.kernel[1], -1)
            rest = (0, wide - values.shape[-1], 0, tall - values.shape[-2])
            return (Rows(F.pad(values, rest)).times(picked),)

        return back
