"""Dynamic network surgery: pruning that can be undone (Guo et al., arXiv:1608.04493)."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from hydraprune.core.objective import Clock
from hydraprune.core.spec import Number
from hydraprune.masks.source import Over, PassingMask, selected
from hydraprune.masks.structures import Structure
from hydraprune.masks.view import MaskView
from hydraprune.pruners.base import Pruner, Selection, masked_weights
from hydraprune.pruners.moving import Moving, before
from hydraprune.pruners.probe import Probe


class DNS(Pruner):
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
    over: ClassVar[Over] = "weights"
    margin: Number = Field(default=0.1, ge=0, lt=1)
    updates: int = Field(default=250, ge=1)
    until: Number = Field(default=0.75, gt=0, le=1)

    def score(self, view: MaskView, probe: Probe) -> dict[str, Tensor]:
        return masked_weights(view)

    def source(self, score: Tensor, keep: int, structure: Structure) -> PassingMask:
        return PassingMask(selected(score, keep, structure))

    def process(self, selection: Selection, probe: Probe) -> Surgery:
        return Surgery(selection, self)

    def done(self, clock: Clock) -> int:
        """Updates that have come by now, of a frequency that falls as 1 / (1 + time)."""
        time = min(1.0, clock.step / (self.until * clock.epochs * clock.steps_per_epoch))
        return int(self.updates * math.log2(1 + time))


class Surgery(Moving):
    """Cuts and splices."""

    def __init__(self, selection: Selection, dns: DNS) -> None:
        super().__init__(selection)
        self.dns = dns

    def on_step(self, clock: Clock, images: int, loss: float) -> None:
        if self.dns.done(clock) == self.dns.done(before(clock)):
            return
        masks, margin = self.view.masks(), self.dns.margin
        scores = {n: w * torch.where(masks[n], 1 + margin, 1 - margin) for n, w in self.view.weights().items()}
        self.move(self.selection.masks(scores))
