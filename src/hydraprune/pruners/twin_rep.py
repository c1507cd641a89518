"""Twin-Rep: weights as products, which weight decay makes sparse (AAAI 2023, doi:10.1609/aaai.v37i7.26027)."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hydraprune.masks.source import FixedMask, MaskSource, Over
from hydraprune.masks.view import MaskView
from hydraprune.pruners.base import Process, Pruner, Selection, masked_weights
from hydraprune.pruners.probe import Probe


class Twin(FixedMask):
    """`weight * twin * mask`, the twin (the weight's shape) being trained with the weight."""

    over: ClassVar[Over] = "weights"

    def __init__(self, twin: Tensor) -> None:
        super().__init__(torch.ones_like(twin, dtype=torch.bool))
        self.twin = nn.Parameter(twin)

    def forward(self, weight: Tensor) -> Tensor:
        return super().forward(self.settled(weight))

    def settled(self, weight: Tensor) -> Tensor:
        return weight * self.twin


class TwinRep(Pruner):
    """Trains `W * A`; under weight decay d on both factors the product pays the lasso `d * |W * A|`.

    At the start of one epoch the smallest |W * A| are removed, the paper's under one threshold over all layers (budget
    `global`), and the rest trains on. The stage ends with plain weights `W * A`. It is a whole training from random
    weights: the paper's takes 100 epochs, rate 0.1 and weight decay 2e-4.

    Args:
        epoch: the epoch, counted from 1, that begins with pruning; a shorter stage ends with it.
        init: `random` draws A from `U(-1, 1) / sqrt(fan_in)`, so that training starts anew; `balanced` splits the
            weights that are there into `W = sign(w) * sqrt|w|` and `A = sqrt|w|`, so that it goes on from them.

    Sample: `pruner: {kind: twin-rep}` with `budget: {kind: global, sparsity: 0.9}`, in a stage over weights
    """

    kind: Literal["twin-rep"] = "twin-rep"
    over: ClassVar[Over] = "weights"
    anew: ClassVar[bool] = True
    epoch: int = Field(default=10, ge=1)
    init: Literal["random", "balanced"] = "random"

    def score(self, view: MaskView, probe: Probe) -> dict[str, Tensor]:
        return masked_weights(view)

    def sources(self, selection: Selection, probe: Probe) -> dict[str, MaskSource]:
        sources: dict[str, MaskSource] = {}
        for name, acting in masked_weights(selection.view).items():
            if self.init == "balanced":
                twin = acting.abs().sqrt()
                selection.view.weights()[name].copy_(acting.sign() * twin)
            else:
                twin = nn.init.kaiming_uniform_(torch.empty_like(acting), math.sqrt(5), generator=probe.rng)
            sources[name] = Twin(twin)
        return sources

    def process(self, selection: Selection, probe: Probe) -> Process:
        return Cut(selection, self.epoch)


class Cut(Process):
    """Prunes the products at the start of one epoch."""

    def __init__(self, selection: Selection, epoch: int) -> None:
        self.selection, self.epoch = selection, epoch

    def on_start(self, epochs: int, steps_per_epoch: int, done: int) -> None:
        if self.epoch == done + 1:
            self.cut()

    def on_epoch(self, epoch: int, model: nn.Module, metrics: dict[str, float]) -> None:
        if self.epoch == epoch + 1:
            self.cut()

    def finish(self) -> None:
        # Products that are pruned are zero, so once pruned this changes nothing.
        self.cut()

    @torch.no_grad()
    def cut(self) -> None:
        """Keep the largest products."""
        masks = self.selection.masks(masked_weights(self.selection.view))
        for name, mask in self.selection.view.masks().items():
            mask.copy_(masks[name])
