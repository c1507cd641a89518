"""The contract of whatever goes along with training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hydraprune.core.objective import Clock


def alike(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether both have tensors of the same names, types and shapes."""
    return one.keys() == other.keys() and all(
        (value.dtype, value.shape) == (other[name].dtype, other[name].shape) for name, value in one.items()
    )


class Hook:
    """Goes along with training; every method may be left as it is.

    With several processes each has its own hooks, and all see the same gradients and weights.
    """

    def on_start(self, epochs: int, steps_per_epoch: int, done: int) -> None:
        """Before the first step; `done` epochs were already taken by an earlier run."""

    def on_note(self, text: str) -> None:
        """Something that the user should be told, such as a damaged state that was passed over."""

    def on_gradient(self, clock: Clock, optimizer: torch.optim.Optimizer) -> None:
        """When the gradient of a step is there, before it is clipped and followed; it may be changed."""

    def on_step(self, clock: Clock, images: int, loss: float) -> None:
        """After an optimizer step on `images` images; `clock` counts it."""

    def on_epoch(self, epoch: int, model: nn.Module, metrics: dict[str, float]) -> None:
        """After `epoch` epochs, before they are saved; what is added to `metrics` goes into the history."""

    def on_end(self) -> None:
        """After the last step, or when training breaks off."""

    def state(self) -> dict[str, Tensor]:
        """What must be saved after an epoch for `restore` to go on from there, beside the model's own tensors."""
        return {}

    def fits(self, state: Mapping[str, Tensor]) -> bool:
        """Whether `restore` can take `state` up; by default, if it is made like that which `state` gives now."""
        return alike(state, self.state())

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave, after `fits` has said that it can."""
