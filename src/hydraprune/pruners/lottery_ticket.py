"""Lottery tickets: iterative magnitude pruning with rewinding (arXiv:1803.03635, arXiv:1903.01611)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor

from hydraprune.core.objective import Clock
from hydraprune.core.plain import canonical
from hydraprune.core.spec import Number
from hydraprune.masks.source import MaskSource
from hydraprune.masks.view import MaskView
from hydraprune.pruners.growing import GrowingSparsity
from hydraprune.pruners.iterative import in_rounds
from hydraprune.pruners.moving import before, moments
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.pruning import Pruning


class LotteryTicket(GrowingSparsity):
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

    def trainings(self, clock: Clock) -> int:
        """How many of the trainings that end in a rewinding are over."""
        return min(self.rounds, moments(clock, self.rounds + 1))

    def level(self, clock: Clock, sparsity: float) -> float:
        return in_rounds(sparsity, self.trainings(clock), self.rounds)

    def begin(self, pruning: Pruning, probe: Probe) -> Mapping[str, MaskSource]:
        pruning.memory |= copied(pruning.view)
        return super().begin(pruning, probe)

    def step(self, pruning: Pruning) -> Iterator[None]:
        if self._rewound(pruning.clock) and pruning.optimizer is not None:
            pruning.optimizer.state.clear()
        yield from super().step(pruning)
        clock = pruning.clock
        if clock.step == int(self.rewind * clock.epochs * clock.steps_per_epoch / (self.rounds + 1)):
            pruning.memory |= copied(pruning.view)
        if self._rewound(clock):
            for name, tensor in trained(pruning.view).items():
                tensor.copy_(pruning.memory[name])

    def _rewound(self, clock: Clock) -> bool:
        return self.trainings(clock) != self.trainings(before(clock))


def trained(view: MaskView) -> dict[str, Tensor]:
    """Everything that training moves, by canonical name, masks apart."""
    masks = {id(mask) for mask in view.masks().values()}
    tensors = view.model.state_dict(keep_vars=True)
    return {canonical(name): tensor.detach() for name, tensor in tensors.items() if id(tensor) not in masks}


def copied(view: MaskView) -> dict[str, Tensor]:
    """Copies of these."""
    return {name: tensor.clone() for name, tensor in trained(view).items()}
