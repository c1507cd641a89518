"""Robust early-bird tickets: the mask is there once it has settled (arXiv:1909.11957; robust, arXiv:2202.09844)."""

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
from hydraprune.pruners.moving import Moving, dense
from hydraprune.pruners.probe import Probe


class EarlyBird(Pruner):
    """Trains densely until the mask of the largest |weight| has settled, prunes by it and trains on (arXiv:2202.09844).

    After each epoch the mask that the budget would give is compared with those of the epochs before. The weights are
    kept, without rewinding, and the optimizer starts afresh. Two masks of sparsity s differ in at most 2 (1 - s) of all
    weights, so choose a smaller distance when s is above 0.9.

    Args:
        distance: share of weights in which no two masks of the window may differ from the newest.
        window: how many masks, of consecutive epochs, are compared.
        until: share of the stage after which the mask is taken even if it has not settled.

    Sample: `pruner: {kind: early-bird}` with `budget: {kind: global, sparsity: 0.8}` in a stage over weights
    """

    kind: Literal["early-bird"] = "early-bird"
    over: ClassVar[Over] = "weights"
    distance: Number = Field(default=0.08, ge=0, le=1)
    window: int = Field(default=5, ge=2)
    until: Number = Field(default=0.5, gt=0, le=1)

    def score(self, view: MaskView, probe: Probe) -> dict[str, Tensor]:
        return masked_weights(view)

    def sources(self, selection: Selection, probe: Probe) -> dict[str, MaskSource]:
        return dense(selection.view)

    def process(self, selection: Selection, probe: Probe) -> Waiting:
        return Waiting(selection, self)


class Waiting(Moving):
    """Looks out for the mask."""

    def __init__(self, selection: Selection, bird: EarlyBird) -> None:
        super().__init__(selection)
        self.bird = bird
        self.recent: list[dict[str, Tensor]] = []
        self.caught = 0

    def on_start(self, epochs: int, steps_per_epoch: int, done: int) -> None:
        self.epochs = epochs

    def on_epoch(self, epoch: int, model: nn.Module, metrics: dict[str, float]) -> None:
        if self.caught:
            return
        newest = self.selection.masks(self.view.weights())
        apart = [distance(newest, masks) for masks in self.recent]
        if apart:
            metrics["mask_distance"] = max(apart)
        settled = len(apart) == self.bird.window - 1 and max(apart) <= self.bird.distance
        if settled or epoch >= self.bird.until * self.epochs:
            self.caught = epoch
            self.move(newest)
        self.recent = [*self.recent, newest][1 - self.bird.window :]

    def on_gradient(self, clock: Clock, optimizer: torch.optim.Optimizer) -> None:
        if self.caught and clock.step == self.caught * clock.steps_per_epoch:
            optimizer.state.clear()

    def finish(self) -> None:
        if not self.caught:
            self.move(self.selection.masks(self.view.weights()))

    def state(self) -> dict[str, Tensor]:
        masks = {f"{age}/{name}": mask for age, each in enumerate(self.recent) for name, mask in each.items()}
        return {"caught": torch.tensor(self.caught), **masks}

    def fits(self, state: Mapping[str, Tensor]) -> bool:
        masks = {f"{age}/{n}": mask for age in range(_ages(state)) for n, mask in self.view.masks().items()}
        return alike(state, {"caught": torch.tensor(0), **masks})

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.caught = int(state["caught"])
        present = self.view.masks()
        self.recent = [
            {name: state[f"{age}/{name}"].to(mask.device) for name, mask in present.items()}
            for age in range(_ages(state))
        ]


def _ages(state: Mapping[str, Tensor]) -> int:
    """Of how many epochs it has the masks."""
    return len({name.split("/")[0] for name in state} - {"caught"})


def distance(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Share of all positions in which two sets of masks differ."""
    apart = sum(int((mask ^ second[name]).sum()) for name, mask in first.items())
    return apart / sum(mask.numel() for mask in first.values())
