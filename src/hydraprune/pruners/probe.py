"""What a pruner may look at beside the weights: random numbers, and the robust objective on training images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice, repeat

import torch
from torch import Tensor, nn

from hydraprune.core.batches import checked, logits_of
from hydraprune.core.errors import PruningError
from hydraprune.core.network import device_of, dtype_of
from hydraprune.core.objective import Batch, Clock, Context, Objective
from hydraprune.core.plain import evaluating, plain_copy
from hydraprune.core.threat import ThreatModel


@dataclass(frozen=True)
class Probe:
    """Random numbers and, if there is an objective, its losses on training images.

    Attributes:
        rng: on the device of the model.
        objective: the robust objective of the stage.
        threat: its adversary.
        batches: starts a pass over training images, always from the same first one.
        networks: the other networks that the objective asks for, by name.
    """

    rng: torch.Generator
    objective: Objective | None = None
    threat: ThreatModel | None = None
    batches: Callable[[], Iterable[Batch]] | None = None
    networks: Mapping[str, nn.Module] = field(default_factory=dict)

    def try_on(self, model: nn.Module) -> None:
        """See that `model` takes the images, if there are any; DataError if it does not."""
        if self.batches is not None:
            x, y = checked(next(iter(self._first(1))), device_of(model), dtype_of(model))
            with evaluating(model), torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
                logits_of(model, x, y)

    def images(self) -> Tensor:
        """The first batch of images (B, C, H, W).

        Raises:
            PruningError: without images.
        """
        return next(iter(self._first(1))).x

    def losses(self, model: nn.Module, batches: int) -> Iterator[Tensor]:
        """The objective of `model` on each of the first `batches` batches, a scalar with gradient.

        Raises:
            PruningError: without objective or images.
        """
        if self.objective is None:
            raise PruningError("this pruner looks at losses; give `prune` a Probe with objective and batches")
        model.train()
        context = Context(self.threat, self.rng, Clock(0, 1, 1), networks=self.networks)
        for step, batch in enumerate(self._first(batches)):
            # Each is a step of its own, so that attacks see the weights of the moment.
            context.clock = Clock(step, batches, 1)
            yield self.objective(model, batch, context).value
            context.settle()

    def slopes(self, model: nn.Module, names: Iterable[str], batches: int = 1) -> Iterator[dict[str, Tensor]]:
        """Name -> gradient of the objective, for parameters of `model`, on each of the first `batches` batches.

        A plain copy is differentiated, so that modes, statistics and gradients of `model` stay as they are.
        """
        plain = plain_copy(model)
        chosen = {name: plain.get_parameter(name).requires_grad_() for name in names}
        for loss in self.losses(plain, batches):
            found = torch.autograd.grad(loss, list(chosen.values()), materialize_grads=True)
            yield dict(zip(chosen, found, strict=True))

    def gradients(self, model: nn.Module, names: Iterable[str], batches: int = 1) -> dict[str, Tensor]:
        """The mean of `slopes`: name -> gradient of the mean objective over the first `batches` batches."""
        found = list(self.slopes(model, names, batches))
        return {name: torch.stack([slopes[name] for slopes in found]).mean(0) for name in found[0]}

    def single(self, batches: int) -> Iterator[Probe]:
        """For each of the first `batches` batches, a probe that sees this one again and again."""
        for batch in self._first(batches):
            yield replace(self, batches=partial(repeat, batch))

    def _first(self, count: int) -> Iterator[Batch]:
        if self.batches is None:
            raise PruningError("this pruner, budget or structure looks at images; give `prune` a Probe with batches")
        return islice(self.batches(), count)
