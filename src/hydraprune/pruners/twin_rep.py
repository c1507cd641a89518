"""Twin-Rep: weights as products, which weight decay makes sparse (AAAI 2023, doi:10.1609/aaai.v37i7.26027)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hydraprune.masks.source import FixedMask, MaskSource, Over
from hydraprune.pruners.base import Moving
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.pruning import Pruning
from hydraprune.pruners.selection import masked_weights


class Factored(FixedMask):
    """`weight * twin * mask`, the twin (the weight's shape) being trained with the weight."""

    over: ClassVar[Over] = "weights"

    def __init__(self, twin: Tensor) -> None:
        super().__init__(torch.ones_like(twin, dtype=torch.bool))
        self.twin = nn.Parameter(twin)

    def forward(self, weight: Tensor) -> Tensor:
        return super().forward(self.settled(weight))

    def settled(self, weight: Tensor) -> Tensor:
        return weight * self.twin


class TwinRep(Moving):
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
    epoch: int = Field(default=10, ge=1)
    init: Literal["random", "balanced"] = "random"

    @property
    def redraws(self) -> bool:
        return self.init == "random"

    def begin(self, pruning: Pruning, probe: Probe) -> Mapping[str, MaskSource]:
        sources: dict[str, MaskSource] = {}
        weights = pruning.view.weights()
        for name, acting in masked_weights(pruning.view).items():
            if self.init == "balanced":
                twin = acting.abs().sqrt()
                weights[name].copy_(acting.sign() * twin)
            else:
                twin = nn.init.kaiming_uniform_(torch.empty_like(acting), math.sqrt(5), generator=probe.rng)
            sources[name] = Factored(twin)
        return sources

    def ready(self, pruning: Pruning) -> None:
        if pruning.clock.step == (self.epoch - 1) * pruning.clock.steps_per_epoch:
            self.finish(pruning)

    def step(self, pruning: Pruning) -> Iterator[None]:
        yield  # it prunes between two epochs

    def after_epoch(self, pruning: Pruning, metrics: dict[str, float]) -> None:
        self.ready(pruning)

    def finish(self, pruning: Pruning) -> None:
        # Products that are pruned are zero, so once pruned this changes nothing.
        pruning.move(pruning.selection.masks(masked_weights(pruning.view)))
