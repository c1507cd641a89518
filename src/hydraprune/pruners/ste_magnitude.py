"""Magnitude pruning in every step, with gradients straight through the mask."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from hydraprune.masks.source import MaskSource
from hydraprune.masks.topk import top_mask
from hydraprune.pruners.base import Moving, passing
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.pruning import Pruning
from hydraprune.pruners.selection import masked_weights


class STEMagnitude(Moving):
    """Dense weights train, and each step uses the largest of them (straight-through, as in arXiv:2304.14082).

    How many groups each layer keeps is settled at the start of the stage.

    Sample: `pruner: {kind: ste-magnitude}` in a stage over weights
    """

    kind: Literal["ste-magnitude"] = "ste-magnitude"

    def begin(self, pruning: Pruning, probe: Probe) -> Mapping[str, MaskSource]:
        return passing(pruning.chosen(masked_weights(pruning.view)))

    def step(self, pruning: Pruning) -> Iterator[None]:
        yield
        masks, keep, near = pruning.view.masks(), pruning.keep, pruning.cache
        for name, weight in pruning.view.weights().items():
            structure = pruning.selection.structures[name]
            kept, near[name] = top_mask(structure.pool(weight), keep[name], near.get(name))
            masks[name].copy_(structure.expand(kept, tuple(weight.shape)))
