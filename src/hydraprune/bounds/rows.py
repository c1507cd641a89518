"""Rows of linear functions of a layer, dense or as small windows on a feature map."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Pair = tuple[int, int]


class Grid(NamedTuple):
    """Windows on a feature map of `side` (H, W), one for each of `size` positions.

    That of position (i, j) has its corner at (i, j) * stride - pad. What lies outside of the map counts as zero.
    """

    side: Pair
    size: Pair
    stride: Pair = (1, 1)
    pad: Pair = (0, 0)


@dataclass(frozen=True)
class Rows:
    """Coefficients (B, P, S, *piece): S linear functions for each of P positions; B and P may be 1 and broadcast.

    Without a grid, P is 1 and a piece is the whole layer. With one, a piece is a window (C, h, w) of a layer (C, H, W):
    a neuron behind few convolutions sees no more, so all its positions together cost as much as some dense rows.

    Args:
        clean: whether coefficients outside of the map are zero already.
    """

    values: Tensor
    grid: Grid | None = None
    clean: bool = True

    @property
    def positions(self) -> int:
        return math.prod(self.grid.size) if self.grid else 1

    def align(self, layer: Tensor) -> Tensor:
        """What each row sees of `layer` (B or 1, *shape): (B or 1, P, 1, *piece), zero outside."""
        if self.grid is None:
            return layer[:, None, None]
        _, (rows, columns), (down, across), (top, left) = self.grid
        height, width = self.values.shape[-2:]
        bottom = max(0, (rows - 1) * down + height - top - layer.shape[2])
        right = max(0, (columns - 1) * across + width - left - layer.shape[3])
        windows = F.pad(layer, (left, right, top, bottom)).unfold(2, height, down).unfold(3, width, across)
        return windows[:, :, :rows, :columns].permute(0, 2, 3, 4, 5, 1).flatten(1, 2).unsqueeze(2).movedim(-1, 3)

    def dot(self, layer: Tensor) -> Tensor:
        """(B or 1, P * S) sums of the coefficients times `layer` (B or 1, *shape)."""
        sums = flat(self.align(layer)) @ flat(self.values).transpose(2, 3)
        return sums.squeeze(2).expand(-1, self.positions, -1).flatten(1)

    def magnitude(self) -> Rows:
        """The absolute coefficients."""
        return replace(self, values=self.values.abs())

    def times(self, layer: Tensor) -> Rows:
        """Each coefficient times its entry of `layer` (B or 1, *shape)."""
        return Rows(self.values * self.align(layer), self.grid)

    def cleaned(self) -> Rows:
        """The same rows, zero outside of the map."""
        return self if self.clean or self.grid is None else self.times(self.values.new_ones(1, 1, *self.grid.side))

    def dense(self) -> Rows:
        """The same rows over the whole layer, positions and specifications in one axis: (B, 1, P * S, C, H, W)."""
        if self.grid is None:
            return self
        (tall, wide), size, (down, across), (top, left) = self.grid
        values = self.values.expand(-1, self.positions, -1, -1, -1, -1).unflatten(1, size)
        height = max(top + tall, (size[0] - 1) * down + values.shape[-2])
        width = max(left + wide, (size[1] - 1) * across + values.shape[-1])
        canvas = values.new_zeros(*values.shape[:-2], height, width)
        b, i, j, s, c, h, w = canvas.stride()
        canvas = canvas.as_strided_scatter(values, values.shape, (b, i + down * h, j + across * w, s, c, h, w))
        return Rows(canvas[..., top : top + tall, left : left + wide].flatten(1, 3).unsqueeze(1))

    def plus(self, other: Rows) -> Rows:
        """The sum of two sets of rows over the same layer."""
        if self.grid is None or other.grid is None or self.grid.stride != other.grid.stride:
            return Rows(self.dense().values + other.dense().values)
        pad = _most(self.grid.pad, other.grid.pad)
        end = _most(self._end, other._end)
        return Rows(
            self._padded(pad, end) + other._padded(pad, end), self.grid._replace(pad=pad), self.clean and other.clean
        )

    @property
    def _end(self) -> Pair:
        assert self.grid is not None
        return self.values.shape[-2] - self.grid.pad[0], self.values.shape[-1] - self.grid.pad[1]

    def _padded(self, pad: Pair, end: Pair) -> Tensor:
        assert self.grid is not None
        top, left = self.grid.pad
        bottom, right = self._end
        return F.pad(self.values, (pad[1] - left, end[1] - right, pad[0] - top, end[0] - bottom))


def flat(pieces: Tensor) -> Tensor:
    """Pieces (B, P, S, *piece) as (B, P, S, N), those of maps in the order in which channels-last memory has them."""
    return (pieces.movedim(3, -1) if pieces.dim() == 6 else pieces).flatten(3)


def unflat(pieces: Tensor, like: Tensor) -> Tensor:
    """The opposite of `flat`, for pieces of the shape of those in `like`."""
    if like.dim() != 6:
        return pieces.unflatten(3, like.shape[3:])
    return pieces.unflatten(3, (*like.shape[4:], like.shape[3])).movedim(-1, 3)


def _most(one: Pair, other: Pair) -> Pair:
    return max(one[0], other[0]), max(one[1], other[1])


def unit_rows(picked: Tensor, shape: torch.Size) -> Rows:
    """Rows (S, C) over the channels of a map (C, H, W), at each position, or (S, N) over the N neurons of a layer."""
    if len(shape) != 3:
        return Rows(picked.view(1, 1, -1, *shape))
    side = (shape[1], shape[2])
    return Rows(picked[None, None, :, :, None, None], Grid(side, side))
