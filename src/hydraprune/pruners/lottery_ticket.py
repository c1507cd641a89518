"""Lottery tickets: iterative magnitude pruning with rewinding (arXiv:1803.03635, arXiv:1903.01611)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from hydraprune.core.objective import Clock
from hydraprune.core.spec import Number
from hydraprune.pruners.base import Selection
from hydraprune.pruners.iterative import in_rounds
from hydraprune.pruners.moving import before, moments
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.ramp import Ramp, Removal


class LotteryTicket(Ramp):
    """Train, prune by |weight|, set what is left back to its early weights, and again (arXiv:1803.03635, section 1).

    The stage is cut into `rounds + 1` equal trainings, with a pruning and a rewinding between any two. Every parameter
    and every norm statistic goes back, bit for bit, and the optimizer forgets. The learning rate is that of the stage
    and does not start again: use a `constant` schedule, or `step`, whose falls then belong to the last ticket.

    Args:
        rounds: how often it is pruned; each time the same share of what remains goes.
        rewind: share of the first training after which the weights are kept for later (arXiv:1903.01611); 0 keeps those
            that the stage starts with.

    Sample: `pruner: {kind: lottery-ticket, rounds: 4, rewind: 0.1}` in a stage over weights
    """

    kind: Literal["lottery-ticket"] = "lottery-ticket"
    rounds: int = Field(default=4, ge=1)
    rewind: Number = Field(default=0.0, ge=0, lt=1)

    def trained(self, clock: Clock) -> int:
        """How many of the trainings that end in a rewinding are over."""
        return min(self.rounds, moments(clock, self.rounds + 1))

    def level(self, clock: Clock, sparsity: float) -> float:
        return in_rounds(sparsity, self.trained(clock), self.rounds)

    def process(self, selection: Selection, probe: Probe) -> Rewinding:
        return Rewinding(selection, self)


class Rewinding(Removal):
    """Keeps the early weights, and goes back to them at the end of each training."""

    def __init__(self, selection: Selection, ticket: LotteryTicket) -> None:
        super().__init__(selection, ticket)
        self.ticket = ticket
        self.early = self._copied()

    def on_gradient(self, clock: Clock, optimizer: torch.optim.Optimizer) -> None:
        if self._rewound(clock):
            optimizer.state.clear()

    def on_step(self, clock: Clock, images: int, loss: float) -> None:
        length = clock.epochs * clock.steps_per_epoch / (self.ticket.rounds + 1)
        if clock.step == int(self.ticket.rewind * length):
            self.early = self._copied()
        super().on_step(clock, images, loss)
        if self._rewound(clock):
            for name, tensor in self._tensors().items():
                tensor.copy_(self.early[name])

    def state(self) -> dict[str, Tensor]:
        return self.early

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.early = dict(state)

    def _rewound(self, clock: Clock) -> bool:
        return self.ticket.trained(clock) != self.ticket.trained(before(clock))

    def _tensors(self) -> dict[str, Tensor]:
        """Everything that training moves, masks apart."""
        masks = {id(mask) for mask in self.view.masks().values()}
        tensors = self.view.model.state_dict(keep_vars=True)
        return {name: tensor.detach() for name, tensor in tensors.items() if id(tensor) not in masks}

    def _copied(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self._tensors().items()}
