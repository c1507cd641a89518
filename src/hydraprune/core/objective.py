"""The contract of a training objective: one number to minimise, over weights or over scores alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hydraprune.core.errors import SpecError
from hydraprune.core.spec import Spec
from hydraprune.core.threat import ThreatModel
from hydraprune.core.twin import Twin


class Batch(NamedTuple):
    """Images `x` (B, C, H, W), float in [0, 1], and class ids `y` (B,), int64."""

    x: Tensor
    y: Tensor


class Loss(NamedTuple):
    """`value`: scalar to minimise, with gradient. `metrics`: scalars without gradient, averaged over the epoch."""

    value: Tensor
    metrics: dict[str, Tensor]


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """The share, a scalar in [0, 1], of logits (B, K) that are largest at their labels `y` (B,)."""
    return (logits.argmax(1) == y).float().mean()


@dataclass(frozen=True)
class Clock:
    """Where training stands: optimizer steps done, of `epochs` epochs with `steps_per_epoch` each."""

    step: int
    steps_per_epoch: int
    epochs: int

    @property
    def epoch(self) -> float:
        """Epochs done, as a real number."""
        return self.step / max(1, self.steps_per_epoch)


@dataclass
class Context:
    """What an objective may know beside the model and the batch.

    Attributes:
        threat: the adversary, or None where the recipe names none.
        rng: the random numbers of this epoch, on the device of the images.
        clock: the current step.
        compile: compile the network that attacks see.
        state: tensors that an objective carries from step to step; emptied at the start of every epoch.
        networks: the other networks, by name, plain, in evaluation mode and without gradient.
        after_backward: what an objective wants undone once the gradient of its loss is there; see `settle`.
    """

    threat: ThreatModel | None
    rng: torch.Generator
    clock: Clock
    compile: bool = False
    state: dict[str, Tensor] = field(default_factory=dict)
    networks: Mapping[str, nn.Module] = field(default_factory=dict)
    after_backward: list[Callable[[], None]] = field(default_factory=list)
    _twin: Twin | None = None

    def adversary(self, who: str, norm: str | None = None) -> ThreatModel:
        """The threat model, or a SpecError that says that `who` needs one, or needs another `norm`."""
        if self.threat is None:
            raise SpecError(f"objective {who!r} needs a threat model; add `threat: {{norm: linf, eps: 8/255}}`")
        if norm not in (None, self.threat.norm):
            raise SpecError(f"objective {who!r} is made for {norm} balls, not {self.threat.norm}; write `norm: {norm}`")
        return self.threat

    def network(self, name: str, who: str) -> nn.Module:
        """The other network of that name, or a SpecError that says that `who` needs it."""
        if name not in self.networks:
            raise SpecError(f"objective {who!r} needs the network {name!r}; give `networks={{{name!r}: model}}`")
        return self.networks[name]

    def settle(self) -> None:
        """Undo, last first, what objectives left to be undone; to be called when the gradient is there."""
        while self.after_backward:
            self.after_backward.pop()()

    def frozen(self, model: nn.Module) -> nn.Module:
        """`model` as an attack sees it: a plain copy in evaluation mode whose parameters take no gradient.

        It holds the weights of the current step (masks applied, cast and folded once per step), so an attack cannot
        disturb the norm statistics, the dropout or the gradients of the model that is being trained.
        """
        if self._twin is None or self._twin.source is not model:
            self._twin = Twin(model, compile=self.compile)
        return self._twin.refresh(self.clock.step)


class Objective(Spec, ABC):
    """A robust (or natural) training loss. The same call serves training over weights and over scores."""

    kind: str

    def parts(self) -> tuple[Objective, ...]:
        """The objectives that this one is made of."""
        return ()

    def steps_per_batch(self) -> int:
        """Optimizer steps taken on each batch."""
        return max([1, *(part.steps_per_batch() for part in self.parts())])

    def networks(self) -> frozenset[str]:
        """Names of the other networks that it asks `ctx.network` for, such as `teacher`."""
        return frozenset().union(*(part.networks() for part in self.parts()))

    @abstractmethod
    def __call__(self, model: nn.Module, batch: Batch, ctx: Context) -> Loss:
        """The loss of `model` (in training mode) on `batch`."""
