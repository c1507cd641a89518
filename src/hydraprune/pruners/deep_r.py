"""Deep rewiring: a random walk over connections whose signs are fixed (Bellec et al., arXiv:1711.05136)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from hydraprune.core.objective import Clock
from hydraprune.core.spec import Number
from hydraprune.masks.structures import Structure
from hydraprune.masks.topk import top_mask
from hydraprune.pruners.base import Selection
from hydraprune.pruners.moving import Moving, Sparse, alive, drawn, forget, numbers
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
    """Holds the sign of every connection; what has none is exactly 0, and so is a newborn."""

    def __init__(self, selection: Selection, deep: DeepR, seed: int) -> None:
        super().__init__(selection)
        self.deep, self.seed = deep, seed
        self.keep, masks = self.groups(), self.view.masks()
        self.positive = {name: weight >= 0 for name, weight in self.view.weights().items()}
        for name, weight in self.view.weights().items():
            weight.mul_(masks[name])

    @torch.no_grad()
    def on_gradient(self, clock: Clock, optimizer: torch.optim.Optimizer) -> None:
        masks, rng = self.view.masks(), None
        for name, weight in self.parameters.items():
            if weight.grad is None:
                continue
            rng = rng or numbers(self.seed, clock.step, weight.device)
            forget(optimizer, weight, weight != 0)
            walk = torch.randn(weight.shape, generator=rng, device=weight.device).mul_(self.deep.noise)
            walk.add_(self.positive[name], alpha=2).sub_(1)
            weight.grad.add_(walk.mul_(masks[name]), alpha=self.deep.l1)

    def on_step(self, clock: Clock, images: int, loss: float) -> None:
        weights, masks, rng = self.view.weights(), self.view.masks(), None
        dead = {name: self._dead(name, weight, masks[name]) for name, weight in weights.items()}
        deaths = torch.stack([each.count_nonzero() for each in dead.values()]).tolist()
        for (name, weight), died in zip(weights.items(), deaths, strict=True):
            if died:
                rng = rng or numbers(self.seed + 1, clock.step, weight.device)
                masks[name].logical_and_(~dead[name])
                weight.masked_fill_(dead[name], 0)
                born = self._born(name, masks[name], rng)
                signs = torch.rand(int(born.count_nonzero()), generator=rng, device=weight.device) < 0.5
                self.positive[name].masked_scatter_(born, signs)
                masks[name].logical_or_(born)

    def state(self) -> dict[str, Tensor]:
        return self.positive

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.positive = {name: state[name].to(mask.device) for name, mask in self.view.masks().items()}

    def _dead(self, name: str, weight: Tensor, mask: Tensor) -> Tensor:
        """Which weights die: those of groups that lie on the wrong side of 0."""
        positive, structure = self.positive[name], self.selection.structures[name]
        if structure.groups(tuple(mask.shape)) == mask.numel():
            return (weight != 0) & ((weight > 0) != positive)
        return mask & (totals(torch.where(positive, weight, -weight), structure) < 0)

    def _born(self, name: str, mask: Tensor, rng: torch.Generator) -> Tensor:
        """Which weights are born, drawn among those without connection."""
        structure, keep = self.selection.structures[name], self.keep[name]
        if structure.sparsity is None:
            kept = alive(mask, structure).clone()
            fill(kept, keep, rng)
        else:
            lots = torch.rand(mask.shape, generator=rng, device=mask.device).masked_fill_(mask, 2.0)
            kept, _ = top_mask(structure.pool(lots), keep)
        return structure.expand(kept, tuple(mask.shape)) & ~mask


def fill(kept: Tensor, keep: int, rng: torch.Generator) -> None:
    """Turn entries of `kept` (groups,) True until `keep` are, each set of them with the same chance."""
    while missing := keep - int(kept.count_nonzero()):
        # Where most are free, some tries find enough of them, for less than a list of all.
        tries = torch.randint(len(kept), (4 * missing,), generator=rng, device=kept.device)
        found = tries[~kept[tries]][:missing]
        if 2 * len(found) < missing:
            free = (~kept).nonzero().flatten()
            found = free[torch.randint(len(free), (missing,), generator=rng, device=kept.device)]
        kept[found] = True


def totals(values: Tensor, structure: Structure) -> Tensor:
    """The sum over each weight's group, in the shape of `values`."""
    shape = tuple(values.shape)
    groups = structure.groups(shape)
    places = structure.expand(torch.arange(groups, device=values.device), shape)
    return values.new_zeros(groups).index_add_(0, places.flatten(), values.flatten())[places]
