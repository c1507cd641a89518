"""The stage that trains: over weights or over importance scores, with a pruner at its start or without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from hydraprune.core.errors import BusyError, SpecError
from hydraprune.core.fingerprint import fingerprint
from hydraprune.core.hook import Hook
from hydraprune.core.objective import Batch
from hydraprune.core.plain import evaluating, plain_copy
from hydraprune.core.spec import nearest
from hydraprune.data import Dataset
from hydraprune.masks import BUDGETS, STRUCTURES
from hydraprune.masks.budgets import Budget
from hydraprune.masks.quantize import quantized
from hydraprune.masks.source import Over
from hydraprune.masks.structures import Structure, Weight
from hydraprune.masks.view import MaskView
from hydraprune.pruners import PRUNERS
from hydraprune.pruners.base import Pruner
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.pruning import prune
from hydraprune.recipes.forecast import Forecast
from hydraprune.recipes.stages import AnyObjective, Stage
from hydraprune.recipes.validation import Validate, Validation
from hydraprune.runs.checkpoint import save
from hydraprune.runs.files import STATE, finished
from hydraprune.runs.lock import own
from hydraprune.runs.meta import Meta
from hydraprune.train import Optim, fit
from hydraprune.train.hooks import Log, ProgressBar
from hydraprune.train.state import both

if TYPE_CHECKING:
    from hydraprune.recipes.runner import Run
    from hydraprune.recipes.schema import Recipe


class Fit(Stage):
    """A stage that minimises the recipe's objective over weights or over importance scores.

    Args:
        name: the stage's folder, and what `--set stages.NAME...` calls it.
        over: which tensors move: `weights`, or `scores` (and norm layers).
        epochs: passes over the training images; 0 only prunes.
        batch_size: images per optimizer step.
        optim: optimizer and schedule.
        pruner: chooses the connections at the start of the stage; None keeps the masks that are there.
        budget: how many connections each layer keeps; needed with a pruner, but for structure `n:m`.
        structure: what is removed together.
        exempt: layers that the pruner leaves dense: names, patterns such as `*.shortcut.*`, `first` and `last`. The
            budget's sparsity is that of the others; counts and tables cover all.
        train_norm: whether scale and shift of norm layers move with the scores, as in the paper.
        quantize: `int8` trains with the rounding of weights and activations that an export to int8 brings; the weights
            that the stage hands on are rounded. None trains in floating point.
        select: which epoch's network the stage hands on: the `last`, or the `best` on validation images.
        validation: what is measured after each epoch.
        objective: another objective than the recipe's; without a `kind`, what changes in the recipe's for this stage,
            such as `{ramp: {length: 0}}`.
        networks: name by which the objective asks for another network -> the earlier stage whose network that is, such
            as `{teacher: pretrain}`.
    """

    kind: Literal["fit"] = "fit"
    trains: ClassVar[bool] = True
    over: Over
    epochs: int = Field(ge=0)
    batch_size: int = Field(default=128, ge=1)
    optim: Optim = Optim()
    pruner: Annotated[Pruner, PRUNERS] | None = None
    budget: Annotated[Budget, BUDGETS] | None = None
    structure: Annotated[Structure, STRUCTURES] = Weight()
    exempt: list[str] = []
    train_norm: bool = True
    quantize: Literal["int8"] | None = None
    select: Literal["last", "best"] = "last"
    validation: Validation = Validation()
    objective: AnyObjective | None = None
    networks: dict[str, str] = {}

    @model_validator(mode="after")
    def _fits(self) -> Fit:
        if self.pruner is None and (self.budget is not None or self.exempt):
            raise ValueError("there is nothing to prune with; add `pruner: hydra`, or drop `budget` and `exempt`")
        if self.pruner is not None and (reason := self.pruner.unfit(self.budget, self.structure)):
            raise ValueError(reason)
        if self.structure.kind == "filter" and self.pruner is not None and not self.exempt:
            raise ValueError("filters of the last layer are whole classes; add `exempt: [last]`, or what stays instead")
        if self.over == "scores" and self.pruner is None:
            raise ValueError("there are no scores without a pruner; add `pruner: {kind: hydra}`, or train over weights")
        if self.over == "scores" and self.epochs and self.pruner is not None and self.pruner.over != "scores":
            cure = "`over: weights`" if self.pruner.over else "`epochs: 0`"
            raise ValueError(f"pruner {self.pruner.kind!r} has no scores to train; use {cure}, or pruner hydra")
        if self.over == "weights" and self.epochs and self.pruner is not None and self.pruner.over == "scores":
            raise ValueError(
                f"pruner {self.pruner.kind!r} learns its scores, and over weights none would move; use `over: scores`, "
                "or pruner magnitude"
            )
        if self.quantize is not None and (self.over == "scores" or self.pruner is not None):
            raise ValueError("masks may not move while weights are rounded; use `quantize` in a stage after pruning")
        if self.select == "best" and self.pruner is not None and self.pruner.paced:
            raise ValueError(f"masks of pruner {self.pruner.kind!r} are found by the last epoch; use `select: last`")
        if self.select == "best" and not self.validation.samples:
            raise ValueError("select: best needs validation images; set validation.samples")
        return self

    def check(self, recipe: Recipe, before: Sequence[Stage]) -> None:
        trained = [stage.name for stage in before if stage.trains]
        objective = self.objective or recipe.objective
        if lacking := sorted(objective.networks() - self.networks.keys()):
            raise ValueError(
                f"objective {objective.kind!r} of stage {self.name!r} asks for the network {lacking[0]!r}; add "
                f"`networks: {{{lacking[0]}: NAME}}` of an earlier stage"
            )
        for name, stage in self.networks.items():
            if name not in objective.networks():
                raise ValueError(f"objective {objective.kind!r} of stage {self.name!r} asks for no network {name!r}")
            if stage not in trained:
                raise ValueError(
                    f"stage {self.name!r} takes its {name} from {stage!r}, no fit before it; {nearest(stage, trained)}"
                )
        if self.select == "best" and not recipe.data.validation:
            raise ValueError(f"stage {self.name!r} selects the best epoch, but data.validation is 0; raise it")

    def run(self, run: Run) -> None:
        folder = run.folder(self.name)
        # The first process decides: the others may look only after it has finished the stage.
        if run.fabric.broadcast(finished(folder)):
            if run.fabric.is_global_zero:
                with suppress(BusyError), own(folder):  # which sweeps what a killed run has left
                    _clear(folder)
            run.tell(f"{self.name}: done before")
            return
        with run.alone(folder):
            self._train(run, folder)

    def _train(self, run: Run, folder: Path) -> None:
        """Start network, masks, training, checkpoint."""
        recipe, fabric, data = run.recipe, run.fabric, run.data
        model, before = self._start(run)
        view = MaskView(fabric.to_device(model), self.exempt)
        networks = {name: self._other(run, stage) for name, stage in self.networks.items()}
        pruning = None
        if self.pruner is not None:
            pruning = prune(view, self.pruner, self.budget, self.structure, self._probe(run, networks))
        validate = Validate(recipe, self, data.validation, fabric, model)
        seed = run.seed(self.name)
        batches = data.train.batches(
            self.batch_size,
            seed=seed,
            augment=True,
            shuffle=True,
            drop_last=len(data.train) >= self.batch_size * fabric.world_size,
            device=fabric.device,
            rank=fabric.global_rank,
            world=fabric.world_size,
        )
        hooks: list[Hook] = [validate, run.noting()]
        if pruning is not None:
            hooks.insert(0, pruning)
        if fabric.is_global_zero:
            bar = ProgressBar(self.name, run.console)
            later = [s for s in recipe.stages[recipe.stages.index(self) + 1 :] if isinstance(s, Fit)]
            forecast = Forecast(sum(stage.epochs for stage in later), bar.on_note)
            hooks += [Log(self.name, run.metrics, run.curves, bar.on_note), bar, forecast]
        with nullcontext() if self.quantize is None else quantized(model):
            history = fit(
                model,
                view.train(self.over, train_norm=self.train_norm) if self.epochs else [],
                batches,
                self.objective or recipe.objective,
                epochs=self.epochs,
                optim=self.optim,
                threat=recipe.threat,
                networks=networks,
                seed=seed,
                fabric=fabric,
                channels_last=recipe.trainer.channels_last,
                compile=recipe.trainer.compile,
                state=folder / STATE,
                key=fingerprint(recipe=recipe.training(), stage=self.plain()),
                hooks=hooks,
            )
            if pruning is not None:
                pruning.finish()
            if fabric.is_global_zero and validate.best:
                model.load_state_dict(validate.best)
        if fabric.is_global_zero:
            view.freeze()
            if pruning is not None:
                run.tell(f"{self.name}: {_removed(view)}")
            channels, side, _ = data.shape
            meta = Meta(
                net=recipe.net,
                num_classes=data.num_classes,
                in_channels=channels,
                image_size=side,
                threat=recipe.threat,
                pruner=before.pruner if self.pruner is None else self.pruner.kind,
                recipe=recipe.plain(),
                metrics=history[-1] if history else {},
                data=run.digests,
            )
            run.note()
            save(folder, model, meta)
            _clear(folder)
        fabric.barrier()

    def _start(self, run: Run) -> tuple[nn.Module, Meta]:
        """The network that the stage takes up, and what is known of it."""
        if earlier := run.before(self):
            checkpoint = run.open(earlier[-1])
            return checkpoint.network(), checkpoint.meta
        torch.manual_seed(run.recipe.seed)
        channels, side, _ = run.data.shape
        model = run.recipe.net.build(run.data.num_classes, channels, side)
        _try(model, run.recipe.net.kind, run.data)
        return model, Meta()

    def _other(self, run: Run, stage: str) -> nn.Module:
        """The network of an earlier stage, which this one does not change."""
        other: nn.Module = run.fabric.to_device(plain_copy(run.open(stage).network()).eval().requires_grad_(False))
        return other

    def _probe(self, run: Run, networks: dict[str, nn.Module]) -> Probe:
        """What the pruner may look at; the same on every process."""
        seed, device = run.seed(self.name, "scores"), run.fabric.device

        def batches() -> Iterator[Batch]:
            return run.data.train.batches(self.batch_size, seed=seed, shuffle=True, device=device).epoch(0)

        objective = self.objective or run.recipe.objective
        return Probe(torch.Generator(device).manual_seed(seed), objective, run.recipe.threat, batches, networks)


def _removed(view: MaskView) -> str:
    """How sparse the network is, of what can be pruned and of all, and which matrices cannot be."""
    prunable, every, outside = view.count(), view.count_all(), view.outside()
    shares = [f"{100 * (1 - count.kept / count.total):.1f} % of {count.total:,}" for count in (prunable, every)]
    beyond = ", ".join(f"{name} ({size:,})" for name, size in outside.items())
    return f"removed {shares[0]} prunable weights, {shares[1]} parameters{f'; out of reach: {beyond}' * bool(beyond)}"


def _clear(folder: Path) -> None:
    """Remove what a finished stage does not need any more."""
    for leftover in both(folder / STATE):
        leftover.unlink(missing_ok=True)


def _try(model: nn.Module, name: str, data: Dataset) -> None:
    """See that the network takes the images and has a logit for each class, before anything is trained."""
    try:
        with evaluating(model), torch.no_grad():
            logits = model(torch.zeros(1, *data.shape))
    except RuntimeError as error:
        raise SpecError(f"net {name!r} does not take images of shape {data.shape}: {error}") from None
    if tuple(logits.shape) != (1, data.num_classes):
        raise SpecError(f"net {name!r} returns {tuple(logits.shape)} for one image of {data.num_classes} classes")
