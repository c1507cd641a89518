"""Deep rewiring: a random walk over connections whose signs are fixed (Bellec et al., arXiv:1711.05136)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from hydraprune.core.seeds import generator
from hydraprune.core.spec import Number
from hydraprune.masks.source import MaskSource
from hydraprune.masks.structures import Structure
from hydraprune.masks.topk import top_mask
from hydraprune.pruners.base import fixed
from hydraprune.pruners.moving import Sparse, alive, drawn, memories
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.pruning import Pruning


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

    def begin(self, pruning: Pruning, probe: Probe) -> Mapping[str, MaskSource]:
        masks = pruning.chosen(self.first(pruning.view, probe))
        pruning.memory["seed"] = drawn(probe.rng)
        for name, weight in pruning.view.weights().items():
            pruning.memory[f"positive/{name}"] = weight >= 0
            weight.mul_(masks[name])  # what has no connection is exactly 0, and without momentum
        return fixed(masks)

    def step(self, pruning: Pruning) -> Iterator[None]:
        seed, masks, rng = int(pruning.memory["seed"]), pruning.view.masks(), None
        for name, weight in pruning.weights.items():
            if weight.grad is None:
                continue
            rng = rng or generator(seed, pruning.clock.step, device=weight.device)
            there = self.there(pruning, name, masks[name])
            walk = torch.randn(len(there), generator=rng, device=weight.device).mul_(self.noise)
            walk.add_(pruning.memory[f"positive/{name}"].take(there), alpha=2).sub_(1)
            weight.grad.put_(there, walk.mul_(self.l1).to(weight.dtype), accumulate=True)
        yield
        rng, keep = None, pruning.keep
        for name, weight in pruning.weights.items():
            mask, structure = masks[name], pruning.selection.structures[name]
            positive = pruning.memory[f"positive/{name}"]
            dead = dying(weight, positive, mask, self.there(pruning, name, mask), structure)
            if not len(dead):
                continue
            rng = rng or generator(seed + 1, pruning.clock.step, device=weight.device)
            mask.put_(dead, torch.zeros_like(dead, dtype=torch.bool))
            new = born(mask, keep[name], structure, rng)
            mask.put_(new, torch.ones_like(new, dtype=torch.bool))
            positive.put_(new, torch.rand(len(new), generator=rng, device=weight.device) < 0.5)
            del pruning.cache[name]
            for tensor in (weight, *memories(pruning.optimizer, weight)):
                tensor.put_(changed := torch.cat([dead, new]), tensor.new_zeros(len(changed)))

    def there(self, pruning: Pruning, name: str, mask: Tensor) -> Tensor:
        """Places of the connections of a weight, found once until they change."""
        found: Tensor = pruning.cache[name] if name in pruning.cache else places(mask)
        pruning.cache[name] = found
        return found


def dying(weight: Tensor, positive: Tensor, mask: Tensor, there: Tensor, structure: Structure) -> Tensor:
    """Places of the weights that die, of those `there`: those of groups that lie on the wrong side of 0."""
    if structure.groups(tuple(mask.shape)) == mask.numel():
        values = weight.take(there)
        return there[((values > 0) != positive.take(there)) & (values != 0)]
    return places(mask & (totals(torch.where(positive, weight, -weight), structure) < 0))


def born(mask: Tensor, keep: int, structure: Structure, rng: torch.Generator) -> Tensor:
    """Places of the weights that are born, drawn among those without connection, until there are `keep` groups."""
    if structure.sparsity is not None:
        lots = torch.rand(mask.shape, generator=rng, device=mask.device).masked_fill_(mask, 2.0)
        kept, _ = top_mask(structure.pool(lots), keep)
    else:
        kept = alive(mask, structure).clone()
        filled = fill(kept, keep, rng)
        if len(kept) == mask.numel():
            return filled
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
