"""What the dynamic methods share: when masks move, and how."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from hydraprune.core.objective import Clock
from hydraprune.core.plain import canonical
from hydraprune.core.seeds import generator
from hydraprune.masks.source import FixedMask, MaskSource, Over
from hydraprune.masks.structures import Structure
from hydraprune.masks.view import MaskView
from hydraprune.pruners.base import Process, Pruner, Selection, masked_weights
from hydraprune.pruners.probe import Probe


class Moving(Process):
    """A process that moves fixed or passing masks in place."""

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.view = selection.view

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The stored weights that have masks, in the order of the view."""
        every = {canonical(name): p for name, p in self.view.model.named_parameters(remove_duplicate=False)}
        return {name: every[name] for name in self.view.modules}

    @torch.no_grad()
    def move(self, masks: Mapping[str, Tensor]) -> None:
        """Put these masks in place of those that are there."""
        present = self.view.masks()
        for name, mask in masks.items():
            present[name].copy_(mask)

    def groups(self) -> dict[str, int]:
        """How many groups of each weight are kept now."""
        structures = self.selection.structures
        return {name: int(alive(mask, structures[name]).count_nonzero()) for name, mask in self.view.masks().items()}


class Sparse(Pruner, ABC):
    """Sparse from the first step on.

    Args:
        start: which connections are there first: `random` ones, as in the paper, or those of largest |weight|, for a
            stage that goes on from a trained network.
    """

    over: ClassVar[Over] = "weights"
    start: Literal["random", "magnitude"] = "random"

    def score(self, view: MaskView, probe: Probe) -> dict[str, Tensor]:
        weights = masked_weights(view)
        if self.start == "magnitude":
            return weights
        return {n: torch.rand(w.shape, generator=probe.rng, device=w.device) for n, w in weights.items()}


def dense(view: MaskView) -> dict[str, MaskSource]:
    """Masks that keep everything."""
    return {name: FixedMask(torch.ones_like(w, dtype=torch.bool)) for name, w in view.weights().items()}


def moments(clock: Clock, times: int, until: float = 1.0) -> int:
    """How many of `times` moments, spread evenly over the first `until` of the stage, have come by now."""
    return max(0, min(times, int(times * clock.step / (until * clock.epochs * clock.steps_per_epoch))))


def before(clock: Clock) -> Clock:
    """One step earlier."""
    return Clock(clock.step - 1, clock.steps_per_epoch, clock.epochs)


def drawn(rng: torch.Generator) -> int:
    """A seed, to be handed to `numbers`."""
    return int(torch.randint(2**31, (), generator=rng, device=rng.device))


def numbers(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The random numbers of one step: a run that was cut draws the same."""
    return generator(seed, step, device=device)


def memories(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> list[Tensor]:
    """Momentum and other moments of `parameter`, each of its shape."""
    state = optimizer.state.get(parameter, {}).values()
    return [moment for moment in state if isinstance(moment, Tensor) and moment.shape == parameter.shape]


def forget(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, stays: Tensor) -> None:
    """Set momentum and other moments of `parameter` to 0 where `stays` (bool, its shape) is False."""
    for moment in memories(optimizer, parameter):
        moment.mul_(stays)


def alive(mask: Tensor, structure: Structure) -> Tensor:
    """(groups,) bool: which groups the mask keeps."""
    single = structure.groups(tuple(mask.shape)) == mask.numel()
    return mask.flatten() if single else structure.pool(mask.float()) > 0
