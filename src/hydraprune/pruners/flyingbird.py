"""Flying Bird and Flying Bird+: dynamic sparsity against robust overfitting (Chen et al., arXiv:2202.09844)."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field

from hydraprune.core.spec import Number
from hydraprune.masks.source import MaskSource
from hydraprune.pruners.moving import moments
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.pruning import Pruning
from hydraprune.pruners.regrow import Regrow, regrown


class Bird(Regrow, ABC):
    """RigL under the robust objective, replacing half of the connections at first (arXiv:2202.09844, section 3).

    Args:
        least: share that the last update replaces; in between it falls as a cosine.
    """

    growth: ClassVar[Literal["random", "gradient"]] = "gradient"
    drop: Number = Field(default=0.5, gt=0, lt=1)
    updates: int = Field(default=80, ge=1)
    until: Number = Field(default=1.0, gt=0, le=1)
    least: Number = Field(default=0.005, ge=0, lt=1)

    def replaced(self, time: float) -> float:
        return self.least + (self.drop - self.least) / 2 * (1 + math.cos(math.pi * time))


class FlyingBird(Bird):
    """RigL under the robust objective, replacing half of the connections at first (arXiv:2202.09844, section 3).

    Sample: `pruner: {kind: flyingbird}` with `budget: {kind: igq, sparsity: 0.9}` in a stage over weights
    """

    kind: Literal["flyingbird"] = "flyingbird"


class FlyingBirdPlus(Bird):
    """Flying Bird whose number of connections follows the signs of overfitting (arXiv:2202.09844, section 3).

    In the second half of the stage every update looks at the last `window` changes from epoch to epoch. If the gap
    between training and validation accuracy (robust, where measured) rose in half of them, it drops more; if validation
    accuracy fell in half of them, it grows more. The last update returns to the budget. Without validation after every
    epoch, or with a structure that says itself how many weights stay, it is Flying Bird.

    Args:
        window: changes that count.
        shrink: what it drops more, relative to what it drops anyway.
        swell: what it grows more, relative to the connections that are there.

    Sample: `pruner: {kind: flyingbird+}` in a stage over weights, with `data.validation` above 0
    """

    kind: Literal["flyingbird+"] = "flyingbird+"
    until: Number = Field(default=0.9, gt=0, le=1)
    window: int = Field(default=4, ge=1)
    shrink: Number = Field(default=0.4, ge=0, le=1)
    swell: Number = Field(default=0.05, ge=0, le=1)

    def begin(self, pruning: Pruning, probe: Probe) -> Mapping[str, MaskSource]:
        pruning.memory["seen"] = torch.full((self.window + 1, 2), torch.nan, dtype=torch.float64)
        return super().begin(pruning, probe)

    def measured(self, pruning: Pruning, metrics: Mapping[str, float]) -> None:
        seen = pruning.memory["seen"]
        for what in ("robust_accuracy", "accuracy"):
            if what in metrics and f"validation_{what}" in metrics:
                value = metrics[f"validation_{what}"]
                pruning.memory["seen"] = torch.cat([seen[1:], seen.new_tensor([[metrics[what] - value, value]])])
                break

    def wanted(self, pruning: Pruning) -> dict[str, int]:
        clock, seen = pruning.clock, pruning.memory["seen"]
        late = 2 * clock.step >= clock.epochs * clock.steps_per_epoch
        last = moments(clock, self.updates, self.until) == self.updates
        if not late or last or seen.isnan().any() or pruning.selection.structure.sparsity is not None:
            return pruning.keep
        gaps, values = seen.T.tolist()
        less = self.shrink * self.replaced(self.time(clock)) if _mostly_rises(gaps) else 0
        more = self.swell if _mostly_rises([-value for value in values]) else 0
        wanted, weights = {}, pruning.weights
        for name, kept in pruning.groups().items():
            most = pruning.selection.structures[name].groups(tuple(weights[name].shape))
            wanted[name] = min(most, max(kept and 1, kept - math.ceil(less * kept) + math.ceil(more * kept)))
        return wanted

    def finish(self, pruning: Pruning) -> None:
        # Return to the budget, should the last update not have come.
        now, keep, weights = pruning.groups(), pruning.keep, pruning.view.weights()
        for name, mask in pruning.view.masks().items():
            weight, structure = weights[name], pruning.selection.structures[name]
            mask.copy_(regrown(weight, mask, weight, min(keep[name], now[name]), keep[name], structure))


def _mostly_rises(values: Sequence[float]) -> bool:
    """Whether at least half of the steps between neighbours go up."""
    rises = [later > earlier for earlier, later in pairwise(values)]
    return 2 * sum(rises) >= len(rises)
