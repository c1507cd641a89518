"""Zonotopes: all neurons as linear functions of the pixels and of one error for each open ReLU, carried forward."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from hydraprune.bounds.interval import Interval
from hydraprune.bounds.ops import Conv, Linear, Op, ReLU, Reshape, Scale
from hydraprune.bounds.rows import Pair

MOST = 2**25
"""Coefficients that the zonotopes of a batch may have at one layer, 128 MiB in float32.

Computing a layer takes about five times as much.
"""


class TooLargeError(Exception):
    """A layer of a zonotope would have this many times as many coefficients as it may."""

    def __init__(self, coefficients: int) -> None:
        self.times = math.ceil(coefficients / max(1, MOST))
        super().__init__(f"{coefficients} coefficients")


def _require_room(coefficients: int) -> None:
    if coefficients > MOST:
        raise TooLargeError(coefficients)


@dataclass(frozen=True)
class Patches:
    """G generators, each of them zero outside of a small window of a feature map.

    A pixel, or an error, reaches no further behind few convolutions, so all of them cost as much as some dense ones.

    Args:
        values: (G, C, h, w), in channels-last memory.
        where: (G, 3): the image, and the row and column of the window's corner. Windows overlap the map (H, W), and
            may stick out of it.
    """

    values: Tensor
    where: Tensor

    @staticmethod
    def units(layer: Tensor, chosen: Tensor) -> Patches:
        """One for each `chosen` entry of `layer` (B, C, H, W), with the value there."""
        image, channel, row, column = chosen.nonzero().unbind(1)
        entry = (torch.arange(len(image), device=layer.device), channel)
        values = layer.new_zeros(len(image), layer.shape[1]).index_put(entry, layer[chosen])
        return Patches(values[:, :, None, None], torch.stack([image, row, column], 1))

    @property
    def size(self) -> Pair:
        return self.values.shape[2], self.values.shape[3]

    def pixels(self) -> Tensor:
        """(G * h * w, C)."""
        return self.values.permute(0, 2, 3, 1).reshape(-1, self.values.shape[1])

    def places(self, canvas: _Canvas) -> Tensor:
        """(G * h * w,): the row of the canvas where each of those pixels lies."""
        image, row, column = self.where.unbind(1)
        tall, wide = (torch.arange(canvas.margin, canvas.margin + length, device=row.device) for length in self.size)
        rows = image[:, None] * canvas.height + row[:, None] + tall
        return (rows[:, :, None] * canvas.width + (column[:, None] + wide)[:, None]).flatten()

    def convolved(self, conv: Conv, side: Pair) -> Iterator[Patches]:
        """These through a layer onto a map of `side`, without its bias; those that meet its stride differently part."""

        def pair(numbers: Pair) -> Tensor:
            return torch.tensor(numbers, device=self.where.device)

        corner, span, stride, padding = self.where[:, 1:], pair(conv.span), pair(conv.stride), pair(conv.padding)
        # An output o reads the inputs from o * stride - padding on, as many as the kernel spans.
        first = -((span - 1 - padding - corner) // stride)
        count = (corner + pair(self.size) - 1 + padding) // stride - first + 1
        seen = ((count > 0) & (first < pair(side))).all(1).nonzero()[:, 0]
        lead = corner - first * stride + padding
        for (top, left, rows, columns), these in _kinds(torch.cat([lead, count], 1)[seen]):
            chosen = seen[these]
            # The layer pads both sides alike, so the end gets what it needs on top; a stride may leave out the start.
            around = (max(0, top), max(0, left))
            ends = [
                max(0, (n - 1) * step + reach - pad - size - start)
                for n, step, reach, pad, size, start in zip(
                    (rows, columns), conv.stride, conv.span, around, self.size, (top, left), strict=True
                )
            ]
            values = self.values.index_select(0, chosen)
            values = F.pad(values, (min(0, left), ends[1], min(0, top), ends[0]))
            values = values.contiguous(memory_format=torch.channels_last)
            values = F.conv2d(values, conv.weight, None, conv.stride, around, conv.dilation, conv.groups)
            where = torch.cat([self.where[chosen, :1], first[chosen]], 1)
            yield Patches(values[:, :, :rows, :columns], where)

    def spread(self, side: Pair) -> Patches:
        """The same on windows that are the whole map."""
        image, *corners = self.where.unbind(1)
        height, width = self.size
        rows, columns = (
            torch.arange(end, device=corner.device) - corner[:, None] for end, corner in zip(side, corners, strict=True)
        )
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
        pixels = self.pixels()
        first = torch.arange(0, len(pixels), height * width, device=image.device)
        places = first[:, None, None] + rows[:, :, None] * width + columns[:, None]
        # What a window does not see comes from one more pixel, which is zero.
        pixels = torch.cat([pixels, pixels.new_zeros(1, pixels.shape[1])])
        values = pixels.index_select(0, places.where(inside, len(pixels) - 1).flatten())
        values = values.unflatten(0, (-1, *side)).permute(0, 3, 1, 2)
        return Patches(values, F.pad(image[:, None], (0, 2)))

    def through(self, maps: Tensor) -> Patches:
        """These through a linear layer with weights `maps` (H, W, C, N), as generators on a map (N, 1, 1)."""
        kinds = _kinds(self.where[:, 1:])
        order = torch.cat([these for _, these in kinds])
        corners = [(row, column, len(these)) for (row, column), these in kinds]
        values = _Windows.apply(self.values.index_select(0, order), maps, corners)
        return Patches(values[:, :, None, None], F.pad(self.where[order, :1], (0, 2)))


def _kinds(rows: Tensor) -> list[tuple[list[int], Tensor]]:
    """Each different row of integers (G, n), and the indices where it stands."""
    if not len(rows):
        return []
    least = rows.amin(0)
    sizes = rows.amax(0) - least + 1
    code = ((rows - least) * (sizes.prod() // sizes.cumprod(0))).sum(1)
    order = code.argsort(stable=True)
    counts = code[order].unique_consecutive(return_counts=True)[1]
    firsts = rows[order[counts.cumsum(0) - counts]]
    return list(zip(firsts.tolist(), order.split(counts.tolist()), strict=True))


class _Canvas(NamedTuple):
    """Maps of `side` with a margin for what sticks out, as rows of channels."""

    images: int
    side: Pair
    margin: int

    @property
    def height(self) -> int:
        return self.side[0] + 2 * self.margin

    @property
    def width(self) -> int:
        return self.side[1] + 2 * self.margin

    def total(self, parts: list[Patches]) -> Tensor:
        """(images, C, H, W) sums of the patches at their places."""
        values = parts[0].values
        sums = values.new_zeros(self.images * self.height * self.width, values.shape[1])
        for part in parts:
            sums.index_add_(0, part.places(self), part.pixels())
        maps = sums.view(self.images, self.height, self.width, -1).permute(0, 3, 1, 2)
        (height, width), start = self.side, self.margin
        return maps[:, :, start : start + height, start : start + width]

    def windows(self, layer: Tensor, parts: list[Patches]) -> Iterator[Tensor]:
        """What each of the patches (G, C, h, w) sees of `layer` (images, C, H, W), zero outside."""
        rows = F.pad(layer, [self.margin] * 4).permute(0, 2, 3, 1).flatten(0, 2)
        for part in parts:
            seen = rows.index_select(0, part.places(self)).unflatten(0, (-1, *part.size))
            yield seen.permute(0, 3, 1, 2)


class _Windows(torch.autograd.Function):
    """Linear layer with weights (H, W, C, N) on patches (G, C, h, w) of its input, sorted by corner: (G, N).

    By hand: every product reads a piece of the weights in place, and adds to a piece of their gradient.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, maps: Tensor, corners: list[tuple[int, int, int]]) -> Tensor:
        pixels = values.permute(0, 2, 3, 1).contiguous()
        ctx.save_for_backward(pixels, maps)
        ctx.corners = corners
        sums = values.new_zeros(len(values), maps.shape[3])
        for these, row, columns, down, across in _lines(pixels, maps, corners):
            sums[these].addmm_(pixels[these, row, columns].flatten(1), maps[down, across].flatten(0, 1))
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        pixels, maps = ctx.saved_tensors
        to_pixels = torch.zeros_like(pixels)
        to_maps = torch.zeros_like(maps) if ctx.needs_input_grad[1] else None
        for these, row, columns, down, across in _lines(pixels, maps, ctx.corners):
            part, weights = pixels[these, row, columns], maps[down, across].flatten(0, 1)
            to_pixels[these, row, columns] = (gradient[these] @ weights.T).view(part.shape)
            if to_maps is not None:
                to_maps[down, across].flatten(0, 1).addmm_(part.flatten(1).T, gradient[these])
        return to_pixels.permute(0, 3, 1, 2), to_maps, None


def _lines(
    pixels: Tensor, maps: Tensor, corners: list[tuple[int, int, int]]
) -> Iterator[tuple[slice, int, slice, int, slice]]:
    """The patches at one corner, a row and the columns of them, and the row and the columns of the map they lie on."""
    begin = 0
    for row, column, count in corners:
        left, right = max(0, column), min(maps.shape[1], column + pixels.shape[2])
        for down in range(max(0, row), min(maps.shape[0], row + pixels.shape[1])):
            yield (
                slice(begin, begin + count),
                down - row,
                slice(left - column, right - column),
                down,
                slice(left, right),
            )
        begin += count


@dataclass(frozen=True)
class Zonotope:
    """What a layer can be: its centre plus each generator times a number in [-1, 1].

    Args:
        center: (B, C, H, W); a layer of N neurons is a map (N, 1, 1), and stays a map when it is flattened.
        parts: the generators, at least one.
        clean: whether they are zero outside of the map.
    """

    center: Tensor
    parts: list[Patches]
    clean: bool = True

    @classmethod
    def around(cls, box: Interval) -> Zonotope | None:
        """The box itself, one generator for each pixel that may change; None unless it is of images or vectors."""
        if len(box.shape) not in (2, 4) or not box.radius.any():
            return None
        shape = (*box.shape, 1, 1)[:4]
        radius = box.radius.reshape(shape)
        return cls(box.center.reshape(shape), [Patches.units(radius, radius > 0)])

    @property
    def side(self) -> Pair:
        return self.center.shape[2], self.center.shape[3]

    @property
    def coefficients(self) -> int:
        return sum(part.values.numel() for part in self.parts)

    @property
    def _canvas(self) -> _Canvas:
        return _Canvas(len(self.center), self.side, max(max(part.size) for part in self.parts) - 1)

    def box(self, shape: torch.Size) -> Interval:
        """The smallest box around it, in the shape (B, ...) of its layer."""
        reach = self._canvas.total([replace(part, values=part.values.abs()) for part in self.parts])
        return Interval(center=self.center.reshape(shape), radius=reach.reshape(shape))

    def after(self, op: Op, box: Interval) -> Zonotope | None:
        """What the operation makes of it, given the box that it is known to be in; None for one it cannot follow.

        Raises:
            TooLargeError: before it computes a layer that is too large.
        """
        match op:
            case Conv():
                return self._convolved(op)
            case Linear() if len(box.shape) == 2:
                return self._through(op)
            case Scale():
                factor, shift = (
                    torch.as_tensor(t, dtype=box.center.dtype, device=box.device).expand_as(box.center[:1])
                    for t in (op.factor, op.shift)
                )
                return self._times(self._map(factor), self._map(shift))
            case ReLU():
                unstable, share, shift = (self._map(t) for t in op.lines(box))
                _require_room(self.coefficients + int(unstable.count_nonzero()) * unstable.shape[1])
                half = shift / 2
                scaled = self._times(share, half)
                errors = Patches.units(half, unstable)
                return replace(scaled, parts=[*scaled.parts, errors]) if len(errors.where) else scaled
            case Reshape() if op.function(box.center).shape == box.center.flatten(1).shape:
                return self
        return None

    def _map(self, layer: Tensor) -> Tensor:
        return layer.reshape(-1, *self.center.shape[1:])

    def _times(self, factor: Tensor, shift: Tensor) -> Zonotope:
        seen = self._canvas.windows(factor.expand_as(self.center), self.parts)
        parts = [replace(part, values=part.values * window) for part, window in zip(self.parts, seen, strict=True)]
        return Zonotope(self.center * factor + shift, parts)

    def _convolved(self, conv: Conv) -> Zonotope | None:
        how = (conv.stride, conv.padding, conv.dilation, conv.groups)
        most = 0
        for part in self.parts:
            sizes = ((n + r - 2) // s + 1 for n, r, s in zip(part.size, conv.span, conv.stride, strict=True))
            most += len(part.where) * len(conv.weight) * math.prod(sizes)
        _require_room(most)
        inside = self if self.clean else self._times(torch.ones_like(self.center[:1]), self.center.new_zeros(()))
        center = F.conv2d(self.center, conv.weight, conv.bias, *how)
        side = (center.shape[2], center.shape[3])
        sorts: dict[Pair, list[Patches]] = defaultdict(list)
        for part in inside.parts:
            for made in part.convolved(conv, side):
                fits = made.size[0] <= side[0] and made.size[1] <= side[1]
                sorts[made.size if fits else side].append(made if fits else made.spread(side))
        return Zonotope(center, [_joined(parts) for parts in sorts.values()], clean=False) if sorts else None

    def _through(self, linear: Linear) -> Zonotope:
        _require_room(sum(len(part.where) for part in self.parts) * len(linear.weight))
        center = F.linear(self.center.flatten(1), linear.weight, linear.bias)
        maps = linear.weight.unflatten(1, self.center.shape[1:]).permute(2, 3, 1, 0).contiguous()
        parts = [part.through(maps) for part in self.parts]
        return Zonotope(center[:, :, None, None], [_joined(parts)])


def _joined(parts: list[Patches]) -> Patches:
    return Patches(torch.cat([part.values for part in parts]), torch.cat([part.where for part in parts]))
