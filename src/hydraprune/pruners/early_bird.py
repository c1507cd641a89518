"""Robust early-bird tickets: the mask is there once it has settled (arXiv:1909.11957; robust, arXiv:2202.09844)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from hydraprune.core.spec import Number
from hydraprune.masks.source import MaskSource
from hydraprune.pruners.base import Moving, dense
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.pruning import Pruning


class EarlyBird(Moving):
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
    distance: Number = Field(default=0.08, ge=0, le=1)
    window: int = Field(default=5, ge=2)
    until: Number = Field(default=0.5, gt=0, le=1)

    def begin(self, pruning: Pruning, probe: Probe) -> Mapping[str, MaskSource]:
        masks = dense(pruning.view)
        pruning.memory |= {"seen": torch.tensor(0), "caught": torch.tensor(0)}
        for name, source in masks.items():
            pruning.memory[f"masks/{name}"] = torch.stack([source.current()] * (self.window - 1))
        return masks

    def step(self, pruning: Pruning) -> Iterator[None]:
        clock, caught = pruning.clock, pruning.memory["caught"]
        # Looked at once an epoch only, as every look waits for the device.
        just = clock.step % clock.steps_per_epoch == 0 and clock.step and caught * clock.steps_per_epoch == clock.step
        if just and pruning.optimizer is not None:
            pruning.optimizer.state.clear()
        yield

    def after_epoch(self, pruning: Pruning, metrics: dict[str, float]) -> None:
        clock, memory = pruning.clock, pruning.memory
        if memory["caught"]:
            return
        newest = pruning.selection.masks(pruning.view.weights())
        seen, ages = int(memory["seen"]), self.window - 1
        apart = [
            distance(newest, {name: memory[f"masks/{name}"][age] for name in newest}) for age in range(min(seen, ages))
        ]
        if apart:
            metrics["mask_distance"] = max(apart)
        settled = len(apart) == ages and max(apart) <= self.distance
        if settled or clock.epoch >= self.until * clock.epochs:
            memory["caught"].fill_(clock.step // clock.steps_per_epoch)
            pruning.move(newest)
        for name, mask in newest.items():
            memory[f"masks/{name}"][seen % ages] = mask
        memory["seen"] += 1

    def finish(self, pruning: Pruning) -> None:
        if not pruning.memory["caught"]:
            pruning.move(pruning.selection.masks(pruning.view.weights()))


def distance(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Share of all positions in which two sets of masks differ."""
    apart = sum(int((mask ^ second[name]).sum()) for name, mask in first.items())
    return apart / sum(mask.numel() for mask in first.values())
