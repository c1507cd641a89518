"""The only training loop: minimise an objective over a list of tensors, whatever they are."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from hydraprune.core.errors import TrainingError
from hydraprune.core.hook import Hook
from hydraprune.core.objective import Batch, Clock, Context, Objective
from hydraprune.core.plain import once
from hydraprune.core.threat import ThreatModel
from hydraprune.train.optim import Average, Optim
from hydraprune.train.state import States


class Batches(Protocol):
    """Training data: `epoch(n)` must be a pure function of `n`, so that an epoch can be run again."""

    def __len__(self) -> int:
        """Batches per epoch."""

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of epoch `number`, shuffled and augmented."""


def fit(
    model: nn.Module,
    params: Sequence[tuple[str, nn.Parameter]],
    batches: Batches,
    objective: Objective,
    *,
    epochs: int,
    optim: Optim | None = None,
    threat: ThreatModel | None = None,
    teacher: nn.Module | None = None,
    seed: int = 0,
    fabric: Fabric | None = None,
    channels_last: bool = True,
    compile: bool = False,
    state: Path | None = None,
    key: str = "",
    hooks: Sequence[Hook] = (),
) -> list[dict[str, Any]]:
    """Minimise `objective` over `params`, in place, and return the metrics of every epoch.

    Args:
        model: returns logits (B, K) for images (B, C, H, W); moved to the device of `fabric`.
        params: (name, tensor) pairs to move; everything else stays, but for the statistics of norm layers.
        batches: the training data; the same on every run with the same seed.
        objective: what to minimise.
        epochs: passes over the data; 0 does nothing.
        optim: optimizer, schedule, clipping and averaging; SGD with a cosine schedule if None.
        threat: the adversary that the objective trains against.
        teacher: the network that the objective distils from, plain, in evaluation mode and without gradient.
        seed: every random number of epoch `e` follows from `seed`, at least 0, and `e` alone.
        fabric: device, number of processes and precision; one process on the CPU in float32 if None.
        channels_last: hold image batches in that memory format.
        compile: compile the network that attacks see (pays on a GPU, costs seconds at the start).
        state: where to save after every epoch, and to resume from if it is there; the state before it is kept beside
            it, and taken up if the newest one is damaged.
        key: names the settings, so that a state of other settings is not resumed.
        hooks: what goes along.

    Raises:
        TrainingError: if the loss is not finite, with the step; the state of the last epoch is kept.
        CheckpointError: if `state` and the one before it are damaged, or it belongs to other settings.
    """
    fabric = fabric or Fabric(accelerator="cpu", devices=1)
    model = fabric.to_device(model)
    tensors = [tensor for _, tensor in params]
    if epochs == 0 or not tensors:
        return []
    loop = _Loop(model, tensors, objective, optim or Optim(), fabric, hooks)
    done = 0
    history: list[dict[str, Any]] = []
    states = None
    if state is not None:
        states = States(state, key, model, loop.optim, loop.optimizer, loop.average, hooks)
        done, history = states.load(epochs, loop.tell)
    steps_per_epoch = len(batches) * objective.steps_per_batch()
    loop.ctx = Context(
        threat,
        torch.Generator(fabric.device),
        Clock(done * steps_per_epoch, steps_per_epoch, epochs),
        compile=compile,
        teacher=None if teacher is None else fabric.to_device(teacher),
    )
    with ExitStack() as ended:
        for hook in hooks:
            hook.on_start(epochs, steps_per_epoch, done)
            ended.callback(hook.on_end)
        for epoch in range(done, epochs):
            started = time.perf_counter()
            loop.begin(_mixed(seed, epoch, fabric.global_rank))
            for batch in batches.epoch(epoch):
                if channels_last and batch.x.dim() == 4:
                    batch = Batch(batch.x.contiguous(memory_format=torch.channels_last), batch.y)
                for _ in range(objective.steps_per_batch()):
                    loop.step(batch)
            _share_statistics(model, fabric)
            metrics = loop.metrics() | {"seconds": time.perf_counter() - started}
            with nullcontext() if loop.average is None else loop.average.applied():
                for hook in hooks:
                    hook.on_epoch(epoch + 1, model, metrics)
            history.append({"epoch": epoch + 1, **metrics})
            if states is not None and fabric.is_global_zero:
                states.save(epoch + 1, history)
    if loop.average is not None:
        loop.average.settle()
    return history


def _mixed(seed: int, epoch: int, rank: int) -> int:
    """A seed for the random numbers of one epoch on one process: 32 bits, as torch ignores the rest on the CPU."""
    return int(np.random.SeedSequence((seed, epoch, rank)).generate_state(1)[0])


class _Loop:
    """The moving parts of one call of `fit`."""

    ctx: Context

    def __init__(
        self,
        model: nn.Module,
        tensors: list[nn.Parameter],
        objective: Objective,
        optim: Optim,
        fabric: Fabric,
        hooks: Sequence[Hook],
    ) -> None:
        self.model, self.tensors, self.objective = model, tensors, objective
        self.optim, self.fabric, self.hooks = optim, fabric, hooks
        self.optimizer = optim.build(tensors)
        self.average = None if optim.ema is None else Average(tensors, optim.ema)
        self.totals: dict[str, Tensor] = {}

    def tell(self, text: str) -> None:
        """Something that the user should know."""
        for hook in self.hooks:
            hook.on_note(text)

    def begin(self, seed: int) -> None:
        """Start an epoch: everything random in it follows from `seed`."""
        torch.manual_seed(seed)
        self.ctx.rng.manual_seed(seed)
        self.ctx.state.clear()
        self.totals.clear()
        self.model.train()

    def step(self, batch: Batch) -> None:
        """One optimizer step."""
        clock = self.ctx.clock
        for group in self.optimizer.param_groups:
            group["lr"] = self.optim.rate(clock)
        with self.fabric.autocast(), once(self.model):
            loss = self.objective(self.model, batch, self.ctx)
        value = loss.value.item()
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {clock.step} (epoch {clock.step // clock.steps_per_epoch + 1}); lower "
                "the learning rate or clip the gradient (optim.clip_norm); the epochs saved before are kept"
            )
        loss.value.backward()
        self.ctx.settle()
        if self.fabric.world_size > 1:
            for tensor in self.tensors:
                if tensor.grad is not None:
                    tensor.grad = _reduced(self.fabric, tensor.grad, "mean")
        for hook in self.hooks:
            hook.on_gradient(clock, self.optimizer)
        if self.optim.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.tensors, self.optim.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update()
        self.ctx.clock = replace(clock, step=clock.step + 1)
        images = torch.tensor(float(len(batch.x)), dtype=torch.float64, device=batch.x.device)
        for name, metric in {"loss": loss.value, **loss.metrics}.items():
            self.totals[name] = self.totals.get(name, 0) + metric.detach() * images
        self.totals["images"] = self.totals.get("images", 0) + images
        for hook in self.hooks:
            hook.on_step(self.ctx.clock, len(batch.x), value)

    def metrics(self) -> dict[str, float]:
        """Averages per image over the epoch so far and over all processes, and the learning rate."""
        totals = {name: _reduced(self.fabric, total, "sum") for name, total in self.totals.items()}
        images = totals.pop("images")
        means = {name: float(total / images) for name, total in totals.items()}
        return {**means, "lr": self.optimizer.param_groups[0]["lr"]}


def _share_statistics(model: nn.Module, fabric: Fabric) -> None:
    """Average the running statistics of norm layers over processes."""
    if fabric.world_size > 1:
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.copy_(_reduced(fabric, buffer, "mean"))


def _reduced(fabric: Fabric, tensor: Tensor, how: str) -> Tensor:
    """`tensor` summed or averaged over processes."""
    return cast(Tensor, fabric.all_reduce(tensor, reduce_op=how))
