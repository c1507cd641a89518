"""Drop and grow: what the methods share that are sparse from the start and move their connections about."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from hydraprune.core.objective import Clock
from hydraprune.core.spec import Number
from hydraprune.masks.source import PassingMask, selected
from hydraprune.masks.structures import Structure
from hydraprune.pruners.base import Selection
from hydraprune.pruners.moving import Moving, Sparse, before, drawn, forget, moments, numbers
from hydraprune.pruners.probe import Probe


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

    def source(self, score: Tensor, keep: int, structure: Structure) -> PassingMask:
        return PassingMask(selected(score, keep, structure))

    def process(self, selection: Selection, probe: Probe) -> Rewiring:
        return Rewiring(selection, self, drawn(probe.rng))


class Rewiring(Moving):
    """Moves connections with the dense gradient of a step, of which the optimizer then sees what has a connection."""

    def __init__(self, selection: Selection, regrow: Regrow, seed: int) -> None:
        super().__init__(selection)
        self.regrow, self.seed = regrow, seed
        self.budget = self.groups()

    @torch.no_grad()
    def on_gradient(self, clock: Clock, optimizer: torch.optim.Optimizer) -> None:
        updates, until = self.regrow.updates, self.regrow.until
        if moments(clock, updates, until) != moments(before(clock), updates, until):
            self.rewire(clock, optimizer)
        masks = self.view.masks()
        for name, weight in self.parameters.items():
            if weight.grad is not None:
                weight.grad.mul_(masks[name])

    def wanted(self, clock: Clock) -> dict[str, int]:
        """Groups that each weight keeps from now on."""
        return self.budget

    def rewire(self, clock: Clock, optimizer: torch.optim.Optimizer) -> None:
        """Drop and grow once, in every layer."""
        masks, kept, wanted = self.view.masks(), self.groups(), self.wanted(clock)
        share = self.regrow.replaced(clock.step / (self.regrow.until * clock.epochs * clock.steps_per_epoch))
        rng = None
        for name, weight in self.parameters.items():
            if weight.grad is None:
                continue
            if self.regrow.growth == "gradient":
                growth = weight.grad
            else:
                rng = rng or numbers(self.seed, clock.step, weight.device)
                growth = torch.rand(weight.shape, generator=rng, device=weight.device)
            stay = min(kept[name] - math.ceil(share * kept[name]), wanted[name])
            mask = regrown(weight, masks[name], growth, stay, wanted[name], self.selection.structures[name])
            old = masks[name] & mask
            weight.mul_(old)
            forget(optimizer, weight, old)
            masks[name].copy_(mask)


def regrown(weight: Tensor, mask: Tensor, growth: Tensor, stay: int, keep: int, structure: Structure) -> Tensor:
    """The mask with the `stay` groups of largest |weight| that `mask` has, and the best of `growth` up to `keep`."""
    tiny = torch.finfo(weight.dtype).tiny
    stays = selected(torch.where(mask, weight.abs() + tiny, 0), stay, structure)
    growth = growth.abs()
    return selected(torch.where(stays, 2 * growth.amax() + 1, growth), keep, structure)
