"""A model under a pruner, from its first masks to those that stay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hydraprune.core.errors import PruningError
from hydraprune.core.hook import Hook, alike
from hydraprune.core.network import device_of, image_of
from hydraprune.core.objective import Clock
from hydraprune.core.plain import values_on_failure
from hydraprune.core.spec import whole
from hydraprune.masks import BUDGETS, STRUCTURES
from hydraprune.masks.budgets import Budget, Uniform
from hydraprune.masks.coupling import coupled_channels
from hydraprune.masks.source import selected
from hydraprune.masks.structures import Structure, Weight
from hydraprune.masks.view import MaskView
from hydraprune.pruners import PRUNERS
from hydraprune.pruners.base import Pruner
from hydraprune.pruners.moving import alive
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.selection import Selection

Named = str | Mapping[str, Any]
"""The name of a method, or its name and settings: `{"kind": "hydra", "gradual": 2}`."""


def prune(
    view: MaskView | nn.Module,
    pruner: Pruner | Named,
    budget: Budget | Named | float | None = None,
    structure: Structure | Named | None = None,
    probe: Probe | None = None,
) -> Pruning:
    """Score, pool, allocate, and attach a mask to every prunable weight of the view's model, in place.

    Args:
        view: the model's prunable weights, or the model, of which none is exempt then.
        pruner: how important they are; a method, its name, or its name and settings, as for the next two.
        budget: how many groups each layer keeps; a number is the sparsity of every layer, in [0, 1); None for a
            structure that says so itself.
        structure: what a group is; single weights by default.
        probe: random numbers, and images for pruners that look at some; without images, seeded with 0 by default.

    Returns:
        What a pruner that learns or moves its masks is trained in, as `with prune(...) as pruning`; the masks of a
        one-shot pruner are there already.

    Raises:
        SpecError: for an argument that cannot be used, such as an unknown pruner.
        DataError: for images of the probe that the network does not take.
        PruningError: if the pruner or the budget needs what the probe lacks, or budget and structure do not fit.
    """
    view = view if isinstance(view, MaskView) else MaskView(view)
    device = device_of(view.model)
    pruner = PRUNERS.make(pruner, "pruner")
    structure = Weight() if structure is None else STRUCTURES.make(structure, "structure")
    if isinstance(budget, int | float) and not isinstance(budget, bool):
        budget = Uniform(sparsity=budget)
    elif budget is not None:
        budget = BUDGETS.make(budget, "budget")
    if reason := pruner.unfit(budget, structure):
        raise PruningError(reason)
    budget = budget or Uniform(sparsity=structure.sparsity)
    probe = probe or Probe(torch.Generator(device).manual_seed(0))
    probe.try_on(view.model)
    costs = budget.costs(view, probe.images)
    coupling = coupled_channels(view.model, image_of(probe.images().shape[1:])) if structure.spans else None
    return Pruning(pruner, Selection(view, budget, structure, costs, coupling), probe)


class Pruning(Hook):
    """A model whose masks are being found: made by `prune`, trained inside `with`, frozen at its end.

    Inside, only what the pruner trains takes gradients, and `parameters` gives it to an optimizer. `fit` takes the
    handle as its first hook; any other loop says `follow(optimizer, ...)` and stays as it is. At the end of the block
    the masks are those of the budget and stay, and what takes gradients is as before. If the block fails, masks and
    scores stay what they are: enter again to go on, or call `freeze` to take them.

    Attributes:
        pruner: the method.
        selection: which groups survive, once it is said how important they are.
        view: the model's prunable weights.
        clock: where training stands.
        optimizer: what takes the present step.
        memory: tensors that the method must remember, of fixed names and shapes; they are saved with training.
        cache: what it finds again from these and from the masks; emptied when a state is taken up.
        metrics: of the latest epoch; `flyingbird+` looks for `accuracy` and `validation_accuracy` there.
    """

    def __init__(self, pruner: Pruner, selection: Selection, probe: Probe) -> None:
        self.pruner, self.selection, self.view = pruner, selection, selection.view
        self.clock = Clock(0, 0, 0)
        self.optimizer: torch.optim.Optimizer | None = None
        self.memory: dict[str, Tensor] = {}
        self.cache: dict[str, Any] = {}
        self.metrics: dict[str, float] = {}
        self._unread = self._finished = False
        self._step: Iterator[None] = iter(())
        self._followed: list[RemovableHandle] = []
        self._before: tuple[list[tuple[nn.Parameter, bool]], list[tuple[nn.Module, bool]]] | None = None
        with values_on_failure(self.view.model):  # some methods draw new weights first
            sources = pruner.begin(self, probe)
        self.view.attach(sources)
        self._untouched = self._sums()

    # What a user says.

    def __enter__(self) -> Pruning:
        if self._before is not None:
            raise PruningError("this pruning is entered already; leave its `with` block first")
        if self._finished:
            raise PruningError("this pruning is finished and its masks stay; call prune again for others")
        model = self.view.model
        self._before = (
            [(tensor, tensor.requires_grad) for tensor in model.parameters()],
            [(module, module.training) for module in model.modules()],
        )
        self.view.train(self.pruner.over or "weights")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._followed:
            self._followed.pop().remove()
        flags, modes = self._before or ([], [])
        self._before = None
        for tensor, flag in flags:
            tensor.requires_grad_(flag)
        if error is not None:
            for module, mode in modes:
                module.training = mode
            return
        if self.pruner.over is not None and self._idle():
            raise PruningError(
                f"pruner {self.pruner.kind!r} has seen no optimizer step, so its masks were never trained: give `fit` "
                "hooks=[pruning], or call pruning.follow(optimizer, ...) before your loop; freeze() takes them so"
            )
        self.freeze()

    def parameters(self) -> list[nn.Parameter]:
        """What training moves, inside the `with` block: scores and norm layers, or everything but scores."""
        if self._before is None:
            raise PruningError("enter the pruning first: `with prune(...) as pruning`")
        return [tensor for tensor in self.view.model.parameters() if tensor.requires_grad]

    def follow(
        self, optimizer: torch.optim.Optimizer, *, epochs: int | None = None, steps_per_epoch: int | None = None
    ) -> None:
        """Go along with every step that `optimizer` takes until the end of the `with` block.

        Steps are those of the optimizer, so gradients may be accumulated over batches, and clipped. A `GradScaler`
        unscales before it steps and leaves out steps that are not finite, and so does this.

        Args:
            optimizer: holds what `parameters` gives.
            epochs: of the whole training, what an earlier block has done included.
            steps_per_epoch: optimizer steps in each of them.

        Raises:
            PruningError: outside the block, a second time, without what the optimizer should move, or without lengths
                for a pruner that acts by them. A step of `optimizer` raises it beyond these lengths.
        """
        if self._before is None:
            raise PruningError("enter the pruning first: `with prune(...) as pruning`")
        if self._followed:
            raise PruningError("this pruning follows an optimizer already; give one optimizer all that moves")
        held = {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}
        if left := [name for name, tensor in self._found().items() if id(tensor) not in held]:
            raise PruningError(
                f"the optimizer does not hold {left[0]!r}, so pruner {self.pruner.kind!r} would find nothing there; "
                "make it of pruning.parameters()"
            )
        if not epochs or not steps_per_epoch:
            if self.pruner.paced:
                raise PruningError(
                    f"pruner {self.pruner.kind!r} acts by how much of the training is over; say how long it is: "
                    "follow(optimizer, epochs=..., steps_per_epoch=...)"
                )
            epochs = steps_per_epoch = 0
        epochs, steps_per_epoch = whole(epochs, "epochs"), whole(steps_per_epoch, "steps_per_epoch")
        self._begin(Clock(self.clock.step, steps_per_epoch, epochs))
        self._followed = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def finish(self) -> None:
        """Take what the pruner has found; once, after the last step."""
        if not self._finished:
            self._read()
            with torch.no_grad():
                self.pruner.finish(self)
            self._finished = True

    def freeze(self) -> None:
        """Finish, and fix every mask at what it selects then; learned scores are dropped."""
        self.finish()
        self.view.freeze()

    def state_dict(self) -> dict[str, Tensor]:
        """What a loop of one's own must save to go on later, beside the states of model and optimizer: tensors."""
        memory = {f"memory/{name}": value for name, value in self.state().items()}
        return {"step": torch.tensor(self.clock.step), **memory}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` gave, on the same model pruned in the same way; before `follow`.

        Raises:
            PruningError: if it is of another pruning, or training has begun; nothing has changed then.
        """
        if self._followed:
            raise PruningError("this pruning follows an optimizer already; load its state before")
        if not isinstance(state, Mapping) or not alike(state, self.state_dict()):
            raise PruningError(
                f"this state is not one of pruner {self.pruner.kind!r} on this {type(self.view.model).__name__}; prune "
                "with the same settings first"
            )
        self.clock = replace(self.clock, step=int(state["step"]))
        self.restore({name.removeprefix("memory/"): value for name, value in state.items() if name != "step"})

    # What a pruner asks.

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The stored weights that have masks, in the order of the view, and their gradients."""
        return self.view.stored()

    @property
    def keep(self) -> dict[str, int]:
        """Groups that each weight keeps, as the pruner has noted down."""
        return dict(zip(self.view.modules, self.memory["keep"].tolist(), strict=True))

    @keep.setter
    def keep(self, keep: Mapping[str, int]) -> None:
        self.memory["keep"] = torch.tensor([keep[name] for name in self.view.modules])

    def chosen(self, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """The masks that the budget gives for these scores; how many groups they keep is noted down in `keep`."""
        self.keep = keep = self.selection.keep(scores)
        return {name: selected(score, keep[name], self.selection.structures[name]) for name, score in scores.items()}

    def groups(self) -> dict[str, int]:
        """How many groups of each weight are kept now."""
        structures = self.selection.structures
        return {name: int(alive(mask, structures[name]).count_nonzero()) for name, mask in self.view.masks().items()}

    def move(self, masks: Mapping[str, Tensor]) -> None:
        """Put these masks in place of those that are there."""
        present = self.view.masks()
        for name, mask in masks.items():
            present[name].copy_(mask)

    # What happens in training.

    def on_start(self, epochs: int, steps_per_epoch: int, done: int) -> None:
        if self._followed:
            raise PruningError("this pruning follows an optimizer already; `fit` has its own")
        self._begin(Clock(done * steps_per_epoch, steps_per_epoch, epochs))

    def on_gradient(self, clock: Clock, optimizer: torch.optim.Optimizer) -> None:
        self._read()
        self.clock, self.optimizer = clock, optimizer
        self._step = self.pruner.step(self)
        with torch.no_grad():
            next(self._step)

    def on_step(self, clock: Clock, images: int, loss: float) -> None:
        self.clock = clock
        with torch.no_grad():
            next(self._step, None)

    def on_epoch(self, epoch: int, model: nn.Module, metrics: dict[str, float]) -> None:
        self._read()
        self.clock = replace(self.clock, step=epoch * self.clock.steps_per_epoch)
        with torch.no_grad():
            self.pruner.after_epoch(self, metrics)
        self.metrics, self._unread = metrics, True

    def state(self) -> dict[str, Tensor]:
        self._read()
        return self.memory

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.memory = {name: value.to(device_of(self.view.model), copy=True) for name, value in state.items()}
        self.cache.clear()

    def _begin(self, clock: Clock) -> None:
        self.clock, device = clock, device_of(self.view.model)
        self.memory = {name: value.to(device) for name, value in self.memory.items()}
        with torch.no_grad():
            self.pruner.ready(self)

    def _read(self) -> None:
        """Hand over what was measured in the latest epoch, once."""
        if self._unread:
            self._unread = False
            self.pruner.measured(self, self.metrics)

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self.clock.epochs and self.clock.step >= self.clock.epochs * self.clock.steps_per_epoch:
            raise PruningError(
                f"the optimizer goes on after {self.clock.epochs} epochs of {self.clock.steps_per_epoch} steps; "
                "say how long training is in follow(...), in optimizer steps"
            )
        if getattr(optimizer, "found_inf", None) is not None:
            raise PruningError("a fused optimizer unscales gradients where nobody sees them; make it with fused=False")
        self.on_gradient(self.clock, optimizer)

    def _after_step(self, *_: Any) -> None:
        clock = replace(self.clock, step=self.clock.step + 1)
        self.on_step(clock, 0, 0.0)
        if clock.steps_per_epoch and clock.step % clock.steps_per_epoch == 0:
            self.on_epoch(clock.step // clock.steps_per_epoch, self.view.model, {})

    def _found(self) -> dict[str, nn.Parameter]:
        """What must move for the masks to be found."""
        if self.pruner.over is None:
            return {}
        sources = self.view.sources.items()
        of_masks = {f"{kind}:{name}": p for name, source in sources for kind, p in source.named_parameters()}
        return of_masks if self.pruner.over == "scores" else self.weights | of_masks

    def _sums(self) -> list[float]:
        """Numbers that change when what must move has moved, by whatever optimizer."""
        return [float(tensor.detach().sum(dtype=torch.float64)) for tensor in self._found().values()]

    def _idle(self) -> bool:
        """Whether there was no step: a pruner that acts in steps must be told of them, of others the scores tell."""
        return self.clock.step == 0 and (self.pruner.paced or self._sums() == self._untouched)
