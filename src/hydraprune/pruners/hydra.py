"""HYDRA: importance scores trained by the robust objective itself (arXiv:2002.10509)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from hydraprune.core.spec import Number
from hydraprune.masks.source import LearnedMask
from hydraprune.masks.structures import Structure
from hydraprune.masks.view import MaskView
from hydraprune.pruners.base import Learned
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.pruning import Pruning
from hydraprune.pruners.selection import masked_weights


def scaled(weight: Tensor) -> Tensor:
    """The paper's first scores of a layer: `sqrt(6 / fan_in) * W / max|W|` (equation 4)."""
    largest = weight.abs().max().clamp_min(torch.finfo(weight.dtype).tiny)
    return math.sqrt(6 / weight[0].numel()) * weight / largest


class Hydra(Learned):
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
    init: Literal["scaled", "kaiming_uniform", "kaiming_normal", "xavier_uniform", "xavier_normal"] = "scaled"
    sort_ties: bool = False
    gradual: Number = Field(default=0.0, ge=0)

    @property
    def paced(self) -> bool:
        return self.gradual > 0

    def score(self, view: MaskView, probe: Probe) -> dict[str, Tensor]:
        return {name: self._initial(weight, probe.rng) for name, weight in masked_weights(view).items()}

    def mask(self, score: Tensor, keep: int, structure: Structure) -> LearnedMask:
        return LearnedMask(score, keep, structure, sort_ties=self.sort_ties)

    def ready(self, pruning: Pruning) -> None:
        self._shrink(pruning, pruning.clock.epoch)

    def step(self, pruning: Pruning) -> Iterator[None]:
        yield
        if self.gradual:
            self._shrink(pruning, pruning.clock.epoch)

    def finish(self, pruning: Pruning) -> None:
        self._shrink(pruning, self.gradual)

    def _shrink(self, pruning: Pruning, epoch: float) -> None:
        """Let the masks keep everything at first, and after `gradual` epochs what the budget gives."""
        rest = (1 - min(1.0, epoch / self.gradual)) ** 3 if self.gradual else 0
        keep = pruning.keep
        for name, source in pruning.view.sources.items():
            if isinstance(source, LearnedMask):
                most = source.structure.groups(tuple(source.score.shape))
                source.keep = keep[name] + int(rest * (most - keep[name]))

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
