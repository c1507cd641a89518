"""Magnitude pruning in every step, with gradients straight through the mask."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from hydraprune.core.objective import Clock
from hydraprune.masks.source import Over, PassingMask, selected
from hydraprune.masks.structures import Structure
from hydraprune.masks.topk import top_mask
from hydraprune.masks.view import MaskView
from hydraprune.pruners.base import Pruner, Selection, masked_weights
from hydraprune.pruners.moving import Moving
from hydraprune.pruners.probe import Probe


class STEMagnitude(Pruner):
    """Dense weights train, and each step uses the largest of them (straight-through, as in arXiv:2304.14082).

    How many groups each layer keeps is settled at the start of the stage.

    Sample: `pruner: {kind: ste-magnitude}` in a stage over weights
    """

    kind: Literal["ste-magnitude"] = "ste-magnitude"
    over: ClassVar[Over] = "weights"

    def score(self, view: MaskView, probe: Probe) -> dict[str, Tensor]:
        return masked_weights(view)

    def source(self, score: Tensor, keep: int, structure: Structure) -> PassingMask:
        return PassingMask(selected(score, keep, structure))

    def process(self, selection: Selection, probe: Probe) -> Reselection:
        return Reselection(selection)


class Reselection(Moving):
    """Selects anew after each step."""

    def __init__(self, selection: Selection) -> None:
        super().__init__(selection)
        self.keep = self.groups()
        self.near: dict[str, float] = {}

    def on_step(self, clock: Clock, images: int, loss: float) -> None:
        masks = self.view.masks()
        for name, weight in self.view.weights().items():
            structure = self.selection.structures[name]
            kept, self.near[name] = top_mask(structure.pool(weight), self.keep[name], self.near.get(name))
            masks[name].copy_(structure.expand(kept, tuple(weight.shape)))
