"""What the methods share whose masks move: when they do, and with which random numbers."""

from __future__ import annotations

from abc import ABC
from typing import Literal

import torch
from torch import Tensor, nn

from hydraprune.core.objective import Clock
from hydraprune.masks.structures import Structure
from hydraprune.masks.view import MaskView
from hydraprune.pruners.base import Moving
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.selection import masked_weights


class Sparse(Moving, ABC):
    """Sparse from the first step on.

    Args:
        start: which connections are there first: `random` ones, as in the paper, or those of largest |weight|, for a
            stage that goes on from a trained network.
    """

    start: Literal["random", "magnitude"] = "random"

    def first(self, view: MaskView, probe: Probe) -> dict[str, Tensor]:
        """How important each connection is at the start."""
        weights = masked_weights(view)
        if self.start == "magnitude":
            return weights
        return {n: torch.rand(w.shape, generator=probe.rng, device=w.device) for n, w in weights.items()}


def moments(clock: Clock, times: int, until: float = 1.0) -> int:
    """How many of `times` moments, spread evenly over the first `until` of the stage, have come by now."""
    return max(0, min(times, int(times * clock.step / (until * clock.epochs * clock.steps_per_epoch))))


def before(clock: Clock) -> Clock:
    """One step earlier."""
    return Clock(clock.step - 1, clock.steps_per_epoch, clock.epochs)


def drawn(rng: torch.Generator) -> Tensor:
    """A seed; with it and the number of a step, a run that was cut draws the same."""
    return torch.randint(2**31, (), generator=rng, device=rng.device)


def memories(optimizer: torch.optim.Optimizer | None, parameter: nn.Parameter) -> list[Tensor]:
    """Momentum and other moments of `parameter`, each of its shape."""
    state = {} if optimizer is None else optimizer.state.get(parameter, {})
    return [moment for moment in state.values() if isinstance(moment, Tensor) and moment.shape == parameter.shape]


def forget(optimizer: torch.optim.Optimizer | None, parameter: nn.Parameter, stays: Tensor) -> None:
    """Set momentum and other moments of `parameter` to 0 where `stays` (bool, its shape) is False."""
    for moment in memories(optimizer, parameter):
        moment.mul_(stays)


def alive(mask: Tensor, structure: Structure) -> Tensor:
    """(groups,) bool: which groups the mask keeps."""
    single = structure.groups(tuple(mask.shape)) == mask.numel()
    return mask.flatten() if single else structure.pool(mask.float()) > 0
