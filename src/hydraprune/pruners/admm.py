"""Pruning by ADMM under the robust objective (Ye et al., arXiv:1903.12561), the paper's Adv-ADMM baseline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hydraprune.core.hook import alike
from hydraprune.core.objective import Clock
from hydraprune.core.spec import Number
from hydraprune.masks.source import MaskSource, Over
from hydraprune.masks.view import MaskView
from hydraprune.pruners.base import Pruner, Selection, masked_weights
from hydraprune.pruners.moving import Moving, before, dense, moments
from hydraprune.pruners.probe import Probe


class ADMM(Pruner):
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
    over: ClassVar[Over] = "weights"
    rho: Number = Field(default=1e-3, gt=0)
    growth: Number = Field(default=1.3, ge=1)
    updates: int = Field(default=10, ge=1)

    def score(self, view: MaskView, probe: Probe) -> dict[str, Tensor]:
        return masked_weights(view)

    def sources(self, selection: Selection, probe: Probe) -> dict[str, MaskSource]:
        return dense(selection.view)

    def process(self, selection: Selection, probe: Probe) -> Splitting:
        return Splitting(selection, self)


class Splitting(Moving):
    """Holds Z and U, and pulls W to Z - U."""

    def __init__(self, selection: Selection, admm: ADMM) -> None:
        super().__init__(selection)
        self.admm = admm
        self.z: dict[str, Tensor] = {}
        self.u: dict[str, Tensor] = {}

    def on_start(self, epochs: int, steps_per_epoch: int, done: int) -> None:
        if not self.z:
            self.u = {name: torch.zeros_like(weight) for name, weight in self.view.weights().items()}
            self.z = self._projected(self.view.weights())

    @torch.no_grad()
    def on_gradient(self, clock: Clock, optimizer: torch.optim.Optimizer) -> None:
        moving = {name: (w, w.grad) for name, w in self.parameters.items() if w.grad is not None}
        weights, gradients = map(list, zip(*moving.values(), strict=True))
        pull = torch._foreach_sub(weights, [self.z[name] for name in moving])
        torch._foreach_add_(pull, [self.u[name] for name in moving])
        rho = self.admm.rho * self.admm.growth ** moments(clock, self.admm.updates)
        torch._foreach_add_(gradients, pull, alpha=rho)

    def on_step(self, clock: Clock, images: int, loss: float) -> None:
        if moments(clock, self.admm.updates) == moments(before(clock), self.admm.updates):
            return
        weights = self.view.weights()
        self.z = self._projected({name: weight + self.u[name] for name, weight in weights.items()})
        self.u = {name: (self.u[name] + w - self.z[name]) / self.admm.growth for name, w in weights.items()}

    def on_epoch(self, epoch: int, model: nn.Module, metrics: dict[str, float]) -> None:
        weights = self.view.weights()
        off = sum(float((weight - self.z[name]).square().sum()) for name, weight in weights.items())
        metrics["admm_residual"] = (off / sum(float(w.square().sum()) for w in weights.values())) ** 0.5

    def finish(self) -> None:
        self.move(self.selection.masks(self.view.weights()))

    def state(self) -> dict[str, Tensor]:
        return {f"{kind}/{name}": t for kind, each in (("z", self.z), ("u", self.u)) for name, t in each.items()}

    def fits(self, state: Mapping[str, Tensor]) -> bool:
        weights = self.view.weights()
        return alike(state, {f"{kind}/{name}": weight for kind in "zu" for name, weight in weights.items()})

    def restore(self, state: Mapping[str, Tensor]) -> None:
        weights = self.view.weights()
        self.z = {name: state[f"z/{name}"].to(w.device) for name, w in weights.items()}
        self.u = {name: state[f"u/{name}"].to(w.device) for name, w in weights.items()}

    def _projected(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        masks = self.selection.masks(weights)
        return {name: weight * masks[name] for name, weight in weights.items()}
