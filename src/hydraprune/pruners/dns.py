"""Dynamic network surgery: pruning that can be undone (Guo et al., arXiv:1608.04493)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from pydantic import Field

from hydraprune.core.objective import Clock
from hydraprune.core.spec import Number
from hydraprune.masks.source import MaskSource
from hydraprune.pruners.base import Moving, passing
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.pruning import Pruning
from hydraprune.pruners.selection import masked_weights


class DNS(Moving):
    """All weights train on, also those without connection, which come back when they grow (arXiv:1608.04493, eq. 3-4).

    A connection is cut below a threshold a and spliced above b > a; in between it stays as it is. The paper sets both
    by hand in each layer; here they are t / (1 + margin) and t / (1 - margin), with t such that the budget is met
    exactly. Updates grow rarer over the stage as the paper's coin does: half as frequent at the end.

    Args:
        margin: half the relative width between the thresholds; 0.1 gives the ratio 0.9 : 1.1 of the authors' code.
        updates: how many over the stage.
        until: share of the stage after which connections stay.

    Sample: `pruner: {kind: dns}` in a stage over weights
    """

    kind: Literal["dns"] = "dns"
    margin: Number = Field(default=0.1, ge=0, lt=1)
    updates: int = Field(default=250, ge=1)
    until: Number = Field(default=0.75, gt=0, le=1)

    def begin(self, pruning: Pruning, probe: Probe) -> Mapping[str, MaskSource]:
        return passing(pruning.selection.masks(masked_weights(pruning.view)))

    def step(self, pruning: Pruning) -> Iterator[None]:
        earlier = self.done(pruning.clock)
        yield
        if self.done(pruning.clock) != earlier:
            masks, up, down = pruning.view.masks(), 1 + self.margin, 1 - self.margin
            weights = pruning.view.weights()
            pruning.move(pruning.selection.masks({n: w * torch.where(masks[n], up, down) for n, w in weights.items()}))

    def done(self, clock: Clock) -> int:
        """Updates that have come by now, of a frequency that falls as 1 / (1 + time)."""
        time = min(1.0, clock.step / (self.until * clock.epochs * clock.steps_per_epoch))
        return int(self.updates * math.log2(1 + time))
