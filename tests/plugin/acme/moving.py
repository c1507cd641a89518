"""A pruner whose masks move while weights train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import Field

from hydraprune.masks.source import MaskSource
from hydraprune.pruners.base import Moving, passing
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.pruning import Pruning
from hydraprune.pruners.selection import masked_weights


class Breathing(Moving):
    """Selects the largest |weight| anew every few steps.

    Args:
        every: steps between two selections.
    """

    kind: Literal["breathing"] = "breathing"
    every: int = Field(default=2, ge=1)

    def begin(self, pruning: Pruning, probe: Probe) -> Mapping[str, MaskSource]:
        return passing(pruning.selection.masks(masked_weights(pruning.view)))

    def step(self, pruning: Pruning) -> Iterator[None]:
        yield
        if pruning.clock.step % self.every == 0:
            pruning.move(pruning.selection.masks(pruning.view.weights()))
