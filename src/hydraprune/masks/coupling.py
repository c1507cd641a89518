"""Channels that live and die together, through the graph of a network (arXiv:2301.12900)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hydraprune.core.network import image_of
from hydraprune.core.plain import plain_copy
from hydraprune.masks.channels import FIXED, Book, Reader, Unions
from hydraprune.masks.wiring import wired


@dataclass(frozen=True)
class ChannelSet:
    """A set of channels: what makes them, scales them and reads them has one place, or as many, for each.

    Attributes:
        name: the weight that makes them first.
        channels: their numbers in the network.
        reason: why none of them can be removed; None if they can.
    """

    name: str
    channels: range
    reason: str | None


@dataclass(frozen=True)
class Coupling:
    """The channels of a network, numbered from 0.

    Attributes:
        sets: of coupled channels, in the order of the network; their numbers follow each other.
        places: canonical name of a tensor -> axis -> (its size,) the channel at each place, -1 where there is none.
            They are filters, biases and input weights of convolutions and linear layers, and all of norm layers.
        readers: canonical name of a weight that reads channels -> along which axis, and which of them are always 0.
    """

    sets: tuple[ChannelSet, ...]
    places: Mapping[str, Mapping[int, Tensor]]
    readers: Mapping[str, Reader]

    @property
    def size(self) -> int:
        """How many channels there are."""
        return self.sets[-1].channels.stop if self.sets else 0

    def removable(self, without: Collection[str] = ()) -> tuple[ChannelSet, ...]:
        """The sets whose channels can be removed, but those with a place in the tensors `without`."""
        stay = {int(c) for name in without for at in self.places.get(name, {}).values() for c in at.unique() if c >= 0}
        return tuple(s for s in self.sets if s.reason is None and stay.isdisjoint(s.channels))

    def kept(self, name: str, keep: Tensor) -> dict[int, Tensor]:
        """Axis -> (its size,) bool: which places of this tensor stay if channels `keep` (size,) bool do."""
        padded = torch.cat([keep.cpu(), torch.ones(1, dtype=torch.bool)])  # -1 is the last
        return {axis: padded[channels] for axis, channels in self.places.get(name, {}).items()}

    def importance(self, pooled: Mapping[str, Tensor]) -> Tensor:
        """(size,) L2 norm over all that reads a channel, of what each input of some readers has (inputs,)."""
        device = next(iter(pooled.values())).device
        squares = torch.zeros(self.size + 1, dtype=torch.float64, device=device)  # -1 is the last
        for name, values in pooled.items():
            at = self.places[name][self.readers[name].inputs].to(device)
            squares.index_add_(0, at % (self.size + 1), values.double().square())
        return squares[:-1].sqrt()

    def mask(self, name: str, shape: Sequence[int], keep: Tensor) -> Tensor:
        """The mask (bool, `shape`) of a tensor: what kept channels make of kept channels, `keep` being (size,) bool."""
        mask = torch.ones(tuple(shape), dtype=torch.bool)
        for axis, kept in self.kept(name, keep).items():
            mask &= kept.view([-1 if axis == place else 1 for place in range(len(shape))])
        return mask


def coupled_channels(model: nn.Module, image_shape: tuple[int, int, int]) -> Coupling:
    """The channels of `model`, and which of them live and die together.

    Residual sums and products unite the channels of their parts, group by group for grouped convolutions and norms.
    Concatenation, flattening and pooling lead them on. What an operation mixes otherwise stays, as do the channels of
    images and logits, attention, and weights that are used twice.

    Args:
        image_shape: (C, H, W) of an image that the model takes.

    Raises:
        SpecError: if the model cannot be traced, or does not take such images.
    """
    return coupling_of(wired(plain_copy(model), image_of(image_shape)))


def coupling_of(book: Book) -> Coupling:
    """The channels in this book, numbered."""
    root, together = book.unions.root, Unions(book.unions.parent)
    for _, labels in book.blocks:
        for label in labels:
            together.join(labels[0], label)
    members: dict[int, dict[int, str]] = {}  # set -> channel -> the weight that makes it first
    for name, labels in book.blocks:
        for label in labels:
            members.setdefault(together.root(label), {}).setdefault(root(label), name)
    reasons = {together.root(label): reason for label, reason in reversed(book.fixed.items())}
    numbers, sets = {FIXED: -1}, []
    for of, channels in members.items():
        start = len(numbers) - 1
        numbers |= {channel: start + place for place, channel in enumerate(channels)}
        span = range(start, start + len(channels))
        sets.append(ChannelSet(next(iter(channels.values())), span, reasons.get(of)))
    of_label = torch.tensor([numbers[root(label)] for label in range(len(book.unions.parent))])
    places = {name: {axis: of_label[at] for axis, at in axes} for name, axes in book.places.items()}
    return Coupling(tuple(sets), places, dict(book.readers))
