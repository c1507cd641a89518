"""The channels of a tensor on its way through a network, and the book of who makes, scales and reads them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

FIXED = 0
"""The label of everything that is no removable channel, such as the images."""


class Signal:
    """A tensor on its way through a network: for each of its numbers a label, and what is known of it.

    Both are stored once along axes on which they do not change, with length 1 there.

    Attributes:
        shape: of the tensor, for two images.
        labels: which channel a number belongs to (int64); `FIXED` for none.
        const: the number itself where it is the same for every image, NaN elsewhere.
        dtype: of the tensor.
    """

    def __init__(self, shape: Sequence[int], labels: Tensor, const: Tensor, dtype: torch.dtype | None = None) -> None:
        self.shape, self.dtype = torch.Size(shape), dtype or const.dtype
        self.labels, self.const = _thin(labels), _thin(const)

    @classmethod
    def unknown(cls, like: Tensor) -> Signal:
        """Any tensor of this shape and type that has no channels."""
        ones = [1] * like.dim()
        const = torch.full(ones, torch.nan, device=like.device, dtype=torch.promote_types(like.dtype, torch.bfloat16))
        return cls(like.shape, torch.full(ones, FIXED), const, like.dtype)

    def varies(self, axis: int) -> bool:
        """Whether channels differ along this axis."""
        return self.labels.shape[axis] > 1

    def along(self, axis: int) -> tuple[Tensor, Tensor] | None:
        """(size of the axis,) labels and constants; None if labels differ along another axis as well."""
        axis, size = axis % len(self.shape), self.shape[axis]
        if self.labels.numel() != self.labels.shape[axis]:
            return None
        const = self.const.movedim(axis, 0).reshape(self.const.shape[axis], -1)
        same = torch.where((const == const[:, :1]).all(1), const[:, 0], torch.nan)
        return self.labels.flatten().expand(size), same.expand(size)

    def known(self) -> Tensor:
        """The constants, 0 where there is none, stored as they are here."""
        return self.const.nan_to_num().to(self.dtype)

    def stand_in(self) -> Tensor:
        """A tensor like this one."""
        return self.known().expand(self.shape).contiguous()


class Reader(NamedTuple):
    """A weight that reads channels along the axis `inputs` and makes others along `outputs`."""

    inputs: int
    outputs: int
    silent: Tensor
    """(inputs,) bool: which of what it reads is 0 for every image."""


class Unions:
    """Labels in classes, which are joined pair by pair."""

    def __init__(self, parent: Sequence[int] = ()) -> None:
        self.parent = list(parent)

    def root(self, label: int) -> int:
        """The label that stands for the class of this one."""
        parent = self.parent
        while parent[label] != label:
            parent[label] = label = parent[parent[label]]
        return label

    def join(self, one: int, other: int) -> None:
        """Make their classes one."""
        self.parent[self.root(other)] = self.root(one)


class Book:
    """Labels of channels, which of them live and die together, and where in the tensors of the layers they sit.

    Attributes:
        blocks: name of a weight, and the labels of the channels that it makes, in the order of the network.
        unions: labels in classes that live and die together.
        places: name of a tensor -> (axis, (its size,) labels) for each use.
        uses: how often each tensor was used.
        readers: weight -> how it reads.
        fixed: label -> why it cannot be removed.
    """

    def __init__(self) -> None:
        self.blocks: list[tuple[str, list[int]]] = []
        self.unions = Unions([FIXED])
        self.places: defaultdict[str, list[tuple[int, Tensor]]] = defaultdict(list)
        self.uses: Counter[str] = Counter()
        self.readers: dict[str, Reader] = {}
        self.fixed: dict[int, str] = {}

    def block(self, name: str, size: int) -> Tensor:
        """(size,) labels of the new channels that this weight makes."""
        start = len(self.unions.parent)
        labels = range(start, start + size)
        self.unions.parent += labels
        self.blocks.append((name, list(labels)))
        return torch.tensor(labels)

    def fix(self, labels: Tensor, why: str) -> None:
        """These channels cannot be removed."""
        for label in labels.unique().tolist():
            if label != FIXED:
                self.fixed.setdefault(label, why)

    def join(self, first: Tensor, second: Tensor, why: str) -> None:
        """What stands at the same place of both, as broadcasting has it, lives and dies together."""
        first, second = torch.broadcast_tensors(first, second)
        count = len(self.unions.parent)
        for pair in (first * count + second).unique().tolist():
            one, other = divmod(pair, count)
            if FIXED not in (one, other):
                self.unions.join(one, other)
            elif one != other:
                self.fixed.setdefault(max(one, other), why)

    def use(self, name: str, *axes: tuple[int, Tensor]) -> None:
        """A layer uses this tensor, whose axes have these labels."""
        self.uses[name] += 1
        self.places[name] += axes


def _thin(tensor: Tensor) -> Tensor:
    for axis, size in enumerate(tensor.shape):
        if size > 1:
            first = tensor.narrow(axis, 0, 1)
            if tensor.stride(axis) == 0 or bool(((tensor == first) | ((tensor != tensor) & (first != first))).all()):
                tensor = first
    return tensor
