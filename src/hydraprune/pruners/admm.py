"""Pruning by ADMM under the robust objective (Ye et al., arXiv:1903.12561), the paper's Adv-ADMM baseline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from hydraprune.core.spec import Number
from hydraprune.masks.source import MaskSource
from hydraprune.pruners.base import Moving, dense
from hydraprune.pruners.moving import moments
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.pruning import Pruning
from hydraprune.pruners.selection import Selection


class ADMM(Moving):
    """Trains dense weights W under `L + rho / 2 * ||W - Z + U||^2`, with Z sparse, then projects (arXiv:1903.12561).

    At each update `Z = P(W + U)` and `U += W - Z`, P keeping the largest |weight| that the budget allows. U is a
    constant of the penalty, and is scaled down when rho grows, as ADMM in scaled form asks (Boyd et al. 2011, section
    3.4.1); the released code does neither. The stage ends with the projection of W itself; fine-tune after it.

    Args:
        rho: strength of the penalty at the start.
        growth: factor on rho at each update but the first.
        updates: of Z and U over the stage, evenly spaced.

    Sample: `pruner: {kind: admm}` in a stage over weights
    """

    kind: Literal["admm"] = "admm"
    rho: Number = Field(default=1e-3, gt=0)
    growth: Number = Field(default=1.3, ge=1)
    updates: int = Field(default=10, ge=1)

    def begin(self, pruning: Pruning, probe: Probe) -> Mapping[str, MaskSource]:
        weights = pruning.view.weights()
        z = projected(pruning.selection, weights)
        pruning.memory |= named(z, {name: torch.zeros_like(weight) for name, weight in weights.items()})
        return dense(pruning.view)

    def step(self, pruning: Pruning) -> Iterator[None]:
        memory, earlier = pruning.memory, moments(pruning.clock, self.updates)
        moving = {name: (w, w.grad) for name, w in pruning.weights.items() if w.grad is not None}
        weights, gradients = map(list, zip(*moving.values(), strict=True))
        pull = torch._foreach_sub(weights, [memory[f"z/{name}"] for name in moving])
        torch._foreach_add_(pull, [memory[f"u/{name}"] for name in moving])
        torch._foreach_add_(gradients, pull, alpha=self.rho * self.growth**earlier)
        yield
        if moments(pruning.clock, self.updates) != earlier:
            new = pruning.view.weights()
            u = {name: memory[f"u/{name}"] for name in new}
            z = projected(pruning.selection, {name: w + u[name] for name, w in new.items()})
            memory |= named(z, {name: (u[name] + w - z[name]) / self.growth for name, w in new.items()})

    def after_epoch(self, pruning: Pruning, metrics: dict[str, float]) -> None:
        weights = pruning.view.weights()
        off = sum(float((w - pruning.memory[f"z/{name}"]).square().sum()) for name, w in weights.items())
        metrics["admm_residual"] = (off / sum(float(w.square().sum()) for w in weights.values())) ** 0.5

    def finish(self, pruning: Pruning) -> None:
        pruning.move(pruning.selection.masks(pruning.view.weights()))


def projected(selection: Selection, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights, 0 where the budget leaves none."""
    masks = selection.masks(weights)
    return {name: weight * masks[name] for name, weight in weights.items()}


def named(z: dict[str, Tensor], u: dict[str, Tensor]) -> dict[str, Tensor]:
    """Z and U as they are remembered."""
    return {f"{kind}/{name}": tensor for kind, each in (("z", z), ("u", u)) for name, tensor in each.items()}
