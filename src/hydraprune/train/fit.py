"""The only training loop: minimise an objective over a list of tensors, whatever they are."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from hydraprune.core.batches import Epochs, checked, logits_of, passes, require_labels
from hydraprune.core.errors import SpecError, TrainingError
from hydraprune.core.fingerprint import content, fingerprint
from hydraprune.core.hook import Hook
from hydraprune.core.network import by_name, device_of, dtype_of
from hydraprune.core.objective import Batch, Clock, Context, Objective
from hydraprune.core.plain import evaluating, modes_on_failure, once
from hydraprune.core.seeds import derived
from hydraprune.core.spec import said, whole
from hydraprune.core.threat import ThreatModel
from hydraprune.train.machine import Machine, OneProcess, precision
from hydraprune.train.optim import Average, Optim
from hydraprune.train.params import named
from hydraprune.train.state import States


def fit(
    model: nn.Module,
    params: Iterable[tuple[str, nn.Parameter]] | Iterable[nn.Parameter],
    batches: Epochs | Iterable[Any],
    objective: Objective,
    *,
    epochs: int,
    optim: Optim | Mapping[str, Any] | None = None,
    threat: ThreatModel | Mapping[str, Any] | None = None,
    networks: Mapping[str, nn.Module] | None = None,
    seed: int = 0,
    fabric: Machine | None = None,
    channels_last: bool = True,
    compile: bool = False,
    state: Path | str | None = None,
    key: str = "",
    hooks: Sequence[Hook] = (),
) -> list[dict[str, Any]]:
    """Minimise `objective` over `params`, in place, and return the metrics of every epoch.

    An epoch of a DataLoader, too, follows from `seed` and its number alone, as torch's random numbers, and the loader's
    own, are seeded before it. So are those of its workers, unless they live on (`persistent_workers`): these go on
    from where they were, and a resumed run draws other numbers in them. Nothing seeds numpy and `random` in a loader
    without workers.

    Args:
        model: returns logits (B, K) for images (B, C, H, W); moved to the device of `fabric`.
        params: (name, tensor) pairs to move, or tensors of the model; everything else stays, but for the statistics of
            norm layers.
        batches: the training data, images in [0, 1] and class ids, the same on every run with the same seed: batches of
            ours, a DataLoader, or another iterable of pairs that can be read again and has a length.
        objective: what to minimise.
        epochs: passes over the data; 0 does nothing.
        optim: optimizer, schedule, clipping and averaging, or their settings; SGD with a cosine schedule if None.
        threat: the adversary that the objective trains against, or its settings.
        networks: those that the objective asks for by name, such as `{"teacher": dense}`; plain, in evaluation mode and
            without gradient.
        seed: every random number of epoch `e` follows from `seed`, at least 0, and `e` alone.
        fabric: device, number of processes and precision: ours, or one of Lightning; this process on the CPU in float32
            if None.
        channels_last: hold image batches in that memory format.
        compile: compile the network that attacks see (pays on a GPU, costs seconds at the start).
        state: the file to save to after every epoch, and to resume from if it is there; the state before it is kept
            beside it, and taken up if the newest one is damaged.
        key: names the settings that `fit` does not know, such as the data, so that a state of others is not resumed.
        hooks: what goes along.

    Raises:
        SpecError: for an argument that cannot be used, such as `params` of another model; nothing has changed then.
        DataError: for images or labels that do not fit each other, [0, 1] or the network; before the first step, if
            the first batch shows it.
        TrainingError: if the loss is not finite, with the step; the state of the last epoch is kept.
        CheckpointError: if `state` and the one before it are damaged, or it belongs to other settings; it says which.
    """
    device_of(model)
    networks = by_name(networks)
    if not isinstance(objective, Objective):
        raise SpecError(f"objective is {said(objective)}; give the objective itself, such as hydraprune.TRADES()")
    if dtype_of(model) in (torch.float16, torch.bfloat16):
        raise SpecError(
            f"the network is in {dtype_of(model)}, where small steps are lost; call model.float(), and for speed give "
            "fabric=hydraprune.train.OneProcess(bf16=True)"
        )
    optim = Optim() if optim is None else Optim.make(optim, "optim")
    threat = None if threat is None else ThreatModel.make(threat, "threat")
    seed, epochs = whole(seed, "seed"), whole(epochs, "epochs")
    fabric = fabric or OneProcess()
    if epochs == 0:
        fabric.to_device(model)
        return []
    moving, data = named(model, params), passes(batches)
    model = fabric.to_device(model)
    loop = _Loop(model, [tensor for _, tensor in moving], objective, optim, fabric, hooks, channels_last)
    done = 0
    history: list[dict[str, Any]] = []
    states = None
    if state is not None:
        state = Path(state)
        if state.is_dir():
            raise SpecError(f"state {str(state)!r} is a folder; name a file in it, such as state.safetensors")
        tensors = [*model.named_parameters(), *model.named_buffers()]
        settings = {  # what a state must have been saved under to be resumed
            "model": [[name, list(tensor.shape)] for name, tensor in tensors],
            "params": [name for name, _ in moving],
            "number of batches": len(data),
            "objective": [type(objective).__name__, objective.plain()],
            "optim": optim.plain(),
            "threat": threat and threat.plain(),
            "networks": {name: content(*net.parameters(), *net.buffers()) for name, net in networks.items()},
            "epochs": epochs,
            "seed": seed,
            "precision": precision(fabric),
            "key": key,
        }
        keys = {name: fingerprint(value=setting) for name, setting in settings.items()}
        states = States(state, keys, model, optim, loop.optimizer, loop.average, hooks)
        done, history = states.load(epochs, loop.tell)
    sound = getattr(data, "sound", False)
    steps_per_epoch = len(data) * objective.steps_per_batch()
    loop.ctx = Context(
        threat,
        torch.Generator(fabric.device),
        Clock(done * steps_per_epoch, steps_per_epoch, epochs),
        compile=compile,
        networks={name: fabric.to_device(network) for name, network in networks.items()},
    )
    with ExitStack() as ended:
        ended.enter_context(modes_on_failure(model))
        for hook in hooks:
            hook.on_start(epochs, steps_per_epoch, done)
            ended.callback(hook.on_end)
        for epoch in range(done, epochs):
            started = time.perf_counter()
            loop.begin(derived(seed, epoch, fabric.global_rank))
            for pair in data.epoch(epoch):
                batch = loop.taken(pair, sound)
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


class _Loop:
    """The moving parts of one call of `fit`."""

    ctx: Context

    def __init__(
        self,
        model: nn.Module,
        tensors: list[nn.Parameter],
        objective: Objective,
        optim: Optim,
        fabric: Machine,
        hooks: Sequence[Hook],
        channels_last: bool,
    ) -> None:
        self.model, self.tensors, self.objective = model, tensors, objective
        self.optim, self.fabric, self.hooks, self.channels_last = optim, fabric, hooks, channels_last
        self.classes: dict[torch.Size, int] = {}  # by the shape of images that the model was tried on
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

    def taken(self, pair: Any, sound: bool) -> Batch:
        """A batch of the caller's, checked, on the device; the first of its shape is tried on the model.

        One of a split, which is `sound`, is looked at no more: every look waits for the device.
        """
        device = self.fabric.device
        if sound and self.classes:
            x, y = pair.x.to(device, dtype_of(self.model)), pair.y.to(device)
        else:
            x, y = checked(pair, device, dtype_of(self.model))
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        shape = x.shape[1:]
        if shape not in self.classes:
            forked = torch.random.fork_rng([device] if device.type == "cuda" else [])
            with forked, self.fabric.autocast(), evaluating(self.model):
                self.classes[shape] = logits_of(self.model, x, y).shape[1]
        elif not sound:
            require_labels(y, self.classes[shape])
        return Batch(x, y)

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


def _share_statistics(model: nn.Module, fabric: Machine) -> None:
    """Average the running statistics of norm layers over processes."""
    if fabric.world_size > 1:
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.copy_(_reduced(fabric, buffer, "mean"))


def _reduced(fabric: Machine, tensor: Tensor, how: str) -> Tensor:
    """`tensor` summed or averaged over processes."""
    return cast(Tensor, fabric.all_reduce(tensor, reduce_op=how))
