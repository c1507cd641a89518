"""Drop and grow: what the methods share that are sparse from the start and move their connections about."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from hydraprune.core.objective import Clock
from hydraprune.core.seeds import generator
from hydraprune.core.spec import Number
from hydraprune.masks.source import MaskSource, selected
from hydraprune.masks.structures import Structure
from hydraprune.pruners.base import passing
from hydraprune.pruners.moving import Sparse, before, drawn, forget, moments
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.pruning import Pruning


class Regrow(Sparse, ABC):
    """At each update every layer drops its smallest weights and grows as many connections elsewhere.

    Grown weights start at 0 and without momentum. What was just dropped may be grown again and then keeps its value.

    Args:
        drop: share of a layer's connections that the first update replaces.
        updates: how many over the stage, evenly spaced.
        until: share of the stage after which connections stay.

    Attributes:
        growth: whether connections grow at random, or where the gradient is largest.
    """

    growth: ClassVar[Literal["random", "gradient"]]
    drop: Number = Field(default=0.3, gt=0, lt=1)
    updates: int = Field(default=250, ge=1)
    until: Number = Field(default=0.75, gt=0, le=1)

    @abstractmethod
    def replaced(self, time: float) -> float:
        """Share of the connections that an update replaces, `time` going from 0 to 1 at `until`."""

    def begin(self, pruning: Pruning, probe: Probe) -> Mapping[str, MaskSource]:
        masks = pruning.chosen(self.first(pruning.view, probe))
        pruning.memory["seed"] = drawn(probe.rng)
        return passing(masks)

    def step(self, pruning: Pruning) -> Iterator[None]:
        clock, masks = pruning.clock, pruning.view.masks()
        if moments(clock, self.updates, self.until) != moments(before(clock), self.updates, self.until):
            self.rewire(pruning)
        # The dense gradient has been looked at; the optimizer sees that of what has a connection.
        for name, weight in pruning.weights.items():
            if weight.grad is not None:
                weight.grad.mul_(masks[name])
        yield

    def time(self, clock: Clock) -> float:
        """From 0 to 1 at `until`."""
        return clock.step / (self.until * clock.epochs * clock.steps_per_epoch)

    def wanted(self, pruning: Pruning) -> dict[str, int]:
        """Groups that each weight keeps from now on."""
        return pruning.keep

    def rewire(self, pruning: Pruning) -> None:
        """Drop and grow once, in every layer."""
        masks, kept, wanted = pruning.view.masks(), pruning.groups(), self.wanted(pruning)
        share, rng = self.replaced(self.time(pruning.clock)), None
        for name, weight in pruning.weights.items():
            if weight.grad is None:
                continue
            if self.growth == "gradient":
                growth = weight.grad
            else:
                rng = rng or generator(int(pruning.memory["seed"]), pruning.clock.step, device=weight.device)
                growth = torch.rand(weight.shape, generator=rng, device=weight.device)
            stay = min(kept[name] - math.ceil(share * kept[name]), wanted[name])
            mask = regrown(weight, masks[name], growth, stay, wanted[name], pruning.selection.structures[name])
            old = masks[name] & mask
            weight.mul_(old)
            forget(pruning.optimizer, weight, old)
            masks[name].copy_(mask)


def regrown(weight: Tensor, mask: Tensor, growth: Tensor, stay: int, keep: int, structure: Structure) -> Tensor:
    """The mask with the `stay` groups of largest |weight| that `mask` has, and the best of `growth` up to `keep`."""
    tiny = torch.finfo(weight.dtype).tiny
    stays = selected(torch.where(mask, weight.abs() + tiny, 0), stay, structure)
    growth = growth.abs()
    return selected(torch.where(stays, 2 * growth.amax() + 1, growth), keep, structure)
