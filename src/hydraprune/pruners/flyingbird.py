"""Flying Bird and Flying Bird+: dynamic sparsity against robust overfitting (Chen et al., arXiv:2202.09844)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hydraprune.core.hook import alike
from hydraprune.core.objective import Clock
from hydraprune.core.spec import Number
from hydraprune.pruners.base import Selection
from hydraprune.pruners.moving import drawn, moments
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.regrow import Regrow, Rewiring, regrown


class FlyingBird(Regrow):
    """RigL under the robust objective, replacing half of the connections at first (arXiv:2202.09844, section 3).

    Args:
        least: share that the last update replaces; in between it falls as a cosine.

    Sample: `pruner: {kind: flyingbird}` with `budget: {kind: igq, sparsity: 0.9}` in a stage over weights
    """

    kind: Literal["flyingbird"] = "flyingbird"
    growth: ClassVar[Literal["random", "gradient"]] = "gradient"
    drop: Number = Field(default=0.5, gt=0, lt=1)
    updates: int = Field(default=80, ge=1)
    until: Number = Field(default=1.0, gt=0, le=1)
    least: Number = Field(default=0.005, ge=0, lt=1)

    def replaced(self, time: float) -> float:
        return self.least + (self.drop - self.least) / 2 * (1 + math.cos(math.pi * time))


class FlyingBirdPlus(FlyingBird):
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

    kind: Literal["flyingbird+"] = "flyingbird+"  # type: ignore[assignment]
    until: Number = Field(default=0.9, gt=0, le=1)
    window: int = Field(default=4, ge=1)
    shrink: Number = Field(default=0.4, ge=0, le=1)
    swell: Number = Field(default=0.05, ge=0, le=1)

    def process(self, selection: Selection, probe: Probe) -> Following:
        return Following(selection, self, drawn(probe.rng))


class Following(Rewiring):
    """Watches training and validation, and sets the number of connections by them."""

    def __init__(self, selection: Selection, bird: FlyingBirdPlus, seed: int) -> None:
        super().__init__(selection, bird, seed)
        self.bird = bird
        self.seen: list[tuple[float, float]] = []
        self.latest: Mapping[str, float] = {}

    def on_epoch(self, epoch: int, model: nn.Module, metrics: dict[str, float]) -> None:
        self._read()
        # Kept and read later, because validation adds to it after this.
        self.latest = metrics

    def wanted(self, clock: Clock) -> dict[str, int]:
        self._read()
        late = 2 * clock.step >= clock.epochs * clock.steps_per_epoch
        last = moments(clock, self.bird.updates, self.bird.until) == self.bird.updates
        if not late or last or len(self.seen) <= self.bird.window or self.selection.structure.sparsity is not None:
            return self.budget
        gaps, values = zip(*self.seen, strict=True)
        share = self.bird.replaced(clock.step / (self.bird.until * clock.epochs * clock.steps_per_epoch))
        less = self.bird.shrink * share if _mostly_rises(gaps) else 0
        more = self.bird.swell if _mostly_rises([-value for value in values]) else 0
        wanted = {}
        for name, kept in self.groups().items():
            most = self.selection.structures[name].groups(tuple(self.parameters[name].shape))
            wanted[name] = min(most, max(kept and 1, kept - math.ceil(less * kept) + math.ceil(more * kept)))
        return wanted

    def finish(self) -> None:
        """Return to the budget, should the last update not have come."""
        now, weights = self.groups(), self.view.weights()
        for name, mask in self.view.masks().items():
            keep, weight, structure = self.budget[name], weights[name], self.selection.structures[name]
            mask.copy_(regrown(weight, mask, weight, min(keep, now[name]), keep, structure))

    def state(self) -> dict[str, Tensor]:
        self._read()
        return {"seen": torch.tensor(self.seen, dtype=torch.float64).view(-1, 2)}

    def fits(self, state: Mapping[str, Tensor]) -> bool:
        rows = len(state["seen"]) if "seen" in state and state["seen"].dim() else 0
        return alike(state, {"seen": torch.zeros(rows, 2, dtype=torch.float64)})

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.seen = [(gap, value) for gap, value in state["seen"].tolist()]

    def _read(self) -> None:
        """Take up what was measured in the latest epoch, if anything was."""
        for what in ("robust_accuracy", "accuracy"):
            if what in self.latest and f"validation_{what}" in self.latest:
                value = self.latest[f"validation_{what}"]
                self.seen = [*self.seen, (self.latest[what] - value, value)][-self.bird.window - 1 :]
                break
        self.latest = {}


def _mostly_rises(values: Sequence[float]) -> bool:
    """Whether at least half of the steps between neighbours go up."""
    rises = [later > earlier for earlier, later in pairwise(values)]
    return 2 * sum(rises) >= len(rises)
