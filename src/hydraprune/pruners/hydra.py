"""HYDRA: importance scores trained by the robust objective itself (arXiv:2002.10509)."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from hydraprune.core.objective import Clock
from hydraprune.core.spec import Number
from hydraprune.masks.source import LearnedMask, Over
from hydraprune.masks.structures import Structure
from hydraprune.masks.view import MaskView
from hydraprune.pruners.base import Process, Pruner, Selection, masked_weights
from hydraprune.pruners.probe import Probe


def scaled(weight: Tensor) -> Tensor:
    """The paper's first scores of a layer: `sqrt(6 / fan_in) * W / max|W|` (equation 4)."""
    largest = weight.abs().max().clamp_min(torch.finfo(weight.dtype).tiny)
    return math.sqrt(6 / weight[0].numel()) * weight / largest


class Hydra(Pruner):
    """Learned scores; the mask keeps the largest |score| of each layer.

    Args:
        init: `scaled` is the paper's: `sqrt(6 / fan_in) * W / max|W|` per layer (equation 4), so that pruning starts
            from magnitude pruning. The others are its ablations: random scores that know nothing of the weights.
        sort_ties: break ties of |score| as `torch.sort` does on this machine, which is what the authors' code does;
            by default the later index is kept, everywhere.
        gradual: epochs over which what is removed grows to the budget, as `1 - (1 - t)^3` (arXiv:1710.01878); 0
            removes all of it at once, as the paper does.

    Sample: `pruner: {kind: hydra}`
    """

    kind: Literal["hydra"] = "hydra"
    over: ClassVar[Over] = "scores"
    init: Literal["scaled", "kaiming_uniform", "kaiming_normal", "xavier_uniform", "xavier_normal"] = "scaled"
    sort_ties: bool = False
    gradual: Number = Field(default=0.0, ge=0)

    @property
    def dynamic(self) -> bool:
        return self.gradual > 0

    def score(self, view: MaskView, probe: Probe) -> dict[str, Tensor]:
        return {name: self._initial(weight, probe.rng) for name, weight in masked_weights(view).items()}

    def source(self, score: Tensor, keep: int, structure: Structure) -> LearnedMask:
        return LearnedMask(score, keep, structure, sort_ties=self.sort_ties)

    def process(self, selection: Selection, probe: Probe) -> Process | None:
        return Shrinking(selection.view, self.gradual) if self.dynamic else None

    def _initial(self, weight: Tensor, rng: torch.Generator) -> Tensor:
        score, gain = torch.empty_like(weight), math.sqrt(2)
        match self.init:
            case "scaled":
                return scaled(weight)
            case "kaiming_uniform":
                return torch.nn.init.kaiming_uniform_(score, generator=rng)
            case "kaiming_normal":
                return torch.nn.init.kaiming_normal_(score, generator=rng)
            case "xavier_uniform":
                return torch.nn.init.xavier_uniform_(score, gain, generator=rng)
            case "xavier_normal":
                return torch.nn.init.xavier_normal_(score, gain, generator=rng)


class Shrinking(Process):
    """Lets learned masks keep everything at first, and after `epochs` what they were made to keep."""

    def __init__(self, view: MaskView, epochs: float) -> None:
        self.epochs = epochs
        self.sources = [source for source in view.sources.values() if isinstance(source, LearnedMask)]
        self.least = [source.keep for source in self.sources]
        self.most = [source.structure.groups(tuple(source.score.shape)) for source in self.sources]

    def on_start(self, epochs: int, steps_per_epoch: int, done: int) -> None:
        self._shrink(done)

    def on_step(self, clock: Clock, images: int, loss: float) -> None:
        self._shrink(clock.epoch)

    def finish(self) -> None:
        self._shrink(self.epochs)

    def _shrink(self, epoch: float) -> None:
        rest = (1 - min(1.0, epoch / self.epochs)) ** 3
        for source, least, most in zip(self.sources, self.least, self.most, strict=True):
            source.keep = least + int(rest * (most - least))
