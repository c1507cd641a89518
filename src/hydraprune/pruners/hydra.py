"""HYDRA: importance scores trained by the robust objective itself (arXiv:2002.10509)."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hydraprune.masks.source import LearnedMask, Over
from hydraprune.masks.structures import Structure
from hydraprune.masks.view import MaskView
from hydraprune.pruners.base import Pruner
from hydraprune.pruners.probe import Probe


class Hydra(Pruner):
    """Learned scores; the mask keeps the largest |score| of each layer.

    Args:
        init: `scaled` is the paper's: `sqrt(6 / fan_in) * W / max|W|` per layer (equation 4), so that pruning starts
            from magnitude pruning. The others are its ablations: random scores that know nothing of the weights.
        sort_ties: break ties of |score| as `torch.sort` does on this machine, which is what the authors' code does;
            by default the later index is kept, everywhere.

    Sample: `pruner: {kind: hydra}`
    """

    kind: Literal["hydra"] = "hydra"
    over: ClassVar[Over] = "scores"
    init: Literal["scaled", "kaiming_uniform", "kaiming_normal", "xavier_uniform", "xavier_normal"] = "scaled"
    sort_ties: bool = False

    def score(self, view: MaskView, probe: Probe) -> dict[str, Tensor]:
        return {name: self._initial(weight, probe.rng) for name, weight in view.weights().items()}

    def source(self, score: Tensor, keep: int, structure: Structure) -> LearnedMask:
        return LearnedMask(score, keep, structure, sort_ties=self.sort_ties)

    def _initial(self, weight: Tensor, rng: torch.Generator) -> Tensor:
        fan_in = weight[0].numel()
        if self.init == "scaled":
            return math.sqrt(6 / fan_in) * weight / weight.abs().max().clamp_min(torch.finfo(weight.dtype).tiny)
        score = torch.empty_like(weight)
        gain = math.sqrt(2)
        match self.init:
            case "kaiming_uniform":
                return torch.nn.init.kaiming_uniform_(score, generator=rng)
            case "kaiming_normal":
                return torch.nn.init.kaiming_normal_(score, generator=rng)
            case "xavier_uniform":
                return torch.nn.init.xavier_uniform_(score, gain, generator=rng)
            case "xavier_normal":
                return torch.nn.init.xavier_normal_(score, gain, generator=rng)
