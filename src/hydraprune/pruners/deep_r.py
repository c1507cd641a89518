"""Deep rewiring: a random walk over connections whose signs are fixed (Bellec et al., arXiv:1711.05136)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from hydraprune.core.objective import Clock
from hydraprune.core.spec import Number
from hydraprune.masks.structures import Structure
from hydraprune.masks.topk import top_mask
from hydraprune.pruners.base import Selection
from hydraprune.pruners.moving import Moving, Sparse, alive, drawn, memories, numbers
from hydraprune.pruners.probe import Probe


class DeepR(Sparse):
    """A connection that would change its sign dies, and another is born at random (arXiv:1711.05136, algorithm 1).

    Every step adds to the gradient of a connection `l1 * (sign + noise * v)` with normal v: with plain SGD of rate lr
    that is the paper's prior and its random walk at temperature `lr * (noise * l1)^2 / 2`. A group of several weights
    dies when they have crossed their signs on average.

    Args:
        l1: strength of the prior that pulls weights to 0.
        noise: of the walk, relative to `l1`; 1/3 is the paper's temperature `lr * l1^2 / 18`.

    Sample: `pruner: {kind: deep-r}` in a stage over weights
    """

    kind: Literal["deep-r"] = "deep-r"
    l1: Number = Field(default=1e-4, ge=0)
    noise: Number = Field(default=1 / 3, ge=0)

    def process(self, selection: Selection, probe: Probe) -> Walk:
        return Walk(selection, self, drawn(probe.rng))


class Walk(Moving):
    """Holds sign and place of every connection; what has none is exactly 0 and without momentum, as is a newborn."""

    optimizer: torch.optim.Optimizer | None = None

    def __init__(self, selection: Selection, deep: DeepR, seed: int) -> None:
        super().__init__(selection)
        self.deep, self.seed = deep, seed
        self.keep, masks = self.groups(), self.view.masks()
        self.positive = {name: weight >= 0 for name, weight in self.view.weights().items()}
        for name, weight in self.view.weights().items():
            weight.mul_(masks[name])
        self.there = {name: places(mask) for name, mask in masks.items()}

    @torch.no_grad()
    def on_gradient(self, clock: Clock, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, rng = optimizer, None
        for name, weight in self.parameters.items():
            if weight.grad is None:
                continue
            rng = rng or numbers(self.seed, clock.step, weight.device)
            there = self.there[name]
            walk = torch.randn(len(there), generator=rng, device=weight.device).mul_(self.deep.noise)
            walk.add_(self.positive[name].take(there), alpha=2).sub_(1)
            weight.grad.put_(there, walk.mul_(self.deep.l1).to(weight.dtype), accumulate=True)

    @torch.no_grad()
    def on_step(self, clock: Clock, images: int, loss: float) -> None:
        masks, rng = self.view.masks(), None
        for name, weight in self.parameters.items():
            dead = self._dead(name, weight, masks[name])
            if not len(dead):
                continue
            rng = rng or numbers(self.seed + 1, clock.step, weight.device)
            masks[name].put_(dead, torch.zeros_like(dead, dtype=torch.bool))
            born = self._born(name, masks[name], rng)
            masks[name].put_(born, torch.ones_like(born, dtype=torch.bool))
            self.positive[name].put_(born, torch.rand(len(born), generator=rng, device=weight.device) < 0.5)
            self.there[name] = places(masks[name])
            for tensor in [weight, *(memories(self.optimizer, weight) if self.optimizer else [])]:
                for changed in (dead, born):
                    tensor.put_(changed, tensor.new_zeros(len(changed)))

    def state(self) -> dict[str, Tensor]:
        return self.positive

    def restore(self, state: Mapping[str, Tensor]) -> None:
        masks = self.view.masks()
        self.positive = {name: state[name].to(mask.device) for name, mask in masks.items()}
        self.there = {name: places(mask) for name, mask in masks.items()}

    def _dead(self, name: str, weight: Tensor, mask: Tensor) -> Tensor:
        """Places of the weights that die: those of groups that lie on the wrong side of 0."""
        positive, structure = self.positive[name], self.selection.structures[name]
        if structure.groups(tuple(mask.shape)) == mask.numel():
            there = self.there[name]
            values = weight.take(there)
            return there[((values > 0) != positive.take(there)) & (values != 0)]
        return places(mask & (totals(torch.where(positive, weight, -weight), structure) < 0))

    def _born(self, name: str, mask: Tensor, rng: torch.Generator) -> Tensor:
        """Places of the weights that are born, drawn among those without connection."""
        structure, keep = self.selection.structures[name], self.keep[name]
        if structure.sparsity is not None:
            lots = torch.rand(mask.shape, generator=rng, device=mask.device).masked_fill_(mask, 2.0)
            kept, _ = top_mask(structure.pool(lots), keep)
        else:
            kept = alive(mask, structure).clone()
            born = fill(kept, keep, rng)
            if len(kept) == mask.numel():
                return born
        return places(structure.expand(kept, tuple(mask.shape)) & ~mask)


def places(mask: Tensor) -> Tensor:
    """Where the mask is True: places in the flat tensor, ascending."""
    if mask.device.type == "cpu":
        # Several times faster than torch where few are.
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.flatten().nonzero().flatten()


def fill(kept: Tensor, keep: int, rng: torch.Generator) -> Tensor:
    """Turn entries of `kept` (groups,) True until `keep` are, each set of them with the same chance; says which."""
    filled = [torch.empty(0, dtype=torch.long, device=kept.device)]
    missing = keep - int(kept.count_nonzero())
    while missing:
        # Where most are free, some tries find enough of them, for less than a list of all.
        tries = torch.randint(len(kept), (4 * missing,), generator=rng, device=kept.device)
        found = tries[~kept[tries]][:missing]
        if 2 * len(found) < missing:
            free = (~kept).nonzero().flatten()
            found = free[torch.randint(len(free), (missing,), generator=rng, device=kept.device)]
        filled.append(found := found.unique())
        kept[found] = True
        missing -= len(found)
    return torch.cat(filled)


def totals(values: Tensor, structure: Structure) -> Tensor:
    """The sum over each weight's group, in the shape of `values`."""
    shape = tuple(values.shape)
    groups = structure.groups(shape)
    places = structure.expand(torch.arange(groups, device=values.device), shape)
    return values.new_zeros(groups).index_add_(0, places.flatten(), values.flatten())[places]
