"""Runs a recipe into a folder, and goes on where an earlier run of the same recipe stopped."""

from __future__ import annotations

import logging
import os
import platform
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from rich.console import Console
from torch import nn
from torch.distributed import is_torchelastic_launched

from hydraprune.core.errors import BusyError, SpecError
from hydraprune.core.files import inside, output_folder, write_atomically, write_json
from hydraprune.core.fingerprint import fingerprint
from hydraprune.core.objective import Batch
from hydraprune.core.plain import evaluating, plain_copy
from hydraprune.core.results import WORST, Record
from hydraprune.data import Dataset
from hydraprune.masks.view import MaskView
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.pruning import prune
from hydraprune.recipes.certify import certify
from hydraprune.recipes.library import dump_recipe, load_recipe, read_recipe
from hydraprune.recipes.measure import measure, subject_of
from hydraprune.recipes.plan import Job, plan
from hydraprune.recipes.schema import Recipe, Trainer
from hydraprune.recipes.stages import Evaluate, Fit, Measure
from hydraprune.recipes.validation import Validate
from hydraprune.runs.cells import STUDY
from hydraprune.runs.checkpoint import (
    DATA,
    Checkpoint,
    Meta,
    finished,
    open_checkpoint,
    read_digests,
    save,
    versions,
)
from hydraprune.runs.lock import awaited, own
from hydraprune.runs.records import RESULTS, read_records
from hydraprune.train import Hook, fit
from hydraprune.train.hooks import Log, ProgressBar
from hydraprune.train.state import both

STATE = "state.safetensors"
"""The newest state of an unfinished stage, in its folder."""


def fabric_for(trainer: Trainer) -> Fabric:
    """The machine that `trainer` asks for.

    Raises:
        SpecError: if it asks for a GPU and there is none, or torchrun has started another number of processes.
    """
    started = int(os.environ["WORLD_SIZE"]) if is_torchelastic_launched() else trainer.devices
    if started != trainer.devices:
        raise SpecError(
            f"torchrun has started {started} processes, but trainer.devices is {trainer.devices}; "
            f"use `--set trainer.devices={started}`"
        )
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces the precision
    cuda = torch.cuda.is_available()
    if trainer.device == "cuda" and not cuda:
        raise SpecError("trainer.device is 'cuda' but torch sees no GPU; use `--set trainer.device=cpu`")
    if trainer.threads is not None:
        torch.set_num_threads(trainer.threads)
    accelerator = "cuda" if cuda and trainer.device != "cpu" else "cpu"
    precise = trainer.precision == "float32" or (trainer.precision == "auto" and accelerator == "cpu")
    return Fabric(
        accelerator=accelerator,
        devices=trainer.devices,
        strategy="ddp" if trainer.devices > 1 else "auto",
        precision="32-true" if precise else "bf16-mixed",
    )


def run(recipe: Recipe | str, out: Path | str, console: Console | None = None) -> list[Record]:
    """Run every stage of `recipe` into the folder `out` and return the records of its evaluations.

    Finished stages are skipped, an unfinished one goes on after its last epoch. The folder gets `recipe.yaml`,
    `environment.json`, `metrics.jsonl`, `tensorboard/`, a checkpoint folder per stage, and `results.json`; nothing
    before there is an epoch to keep, so that a recipe that cannot start may be mended. It is ours until the end.

    Args:
        recipe: what to run, or what `load_recipe` takes: its name, or a YAML file.
        out: a new folder, or one of an earlier run of the same recipe; only evaluations and the machine may differ (the
            number of processes and the precision not within a stage), and what is measured already in the same way is
            not measured again.
        console: where progress is shown; None shows nothing.

    Raises:
        SpecError: for no recipe, or if `out` holds a run of another one, or cannot be a folder to write into.
        BusyError: if another process is running into `out`.
        HydrapruneError: whatever a stage raises; finished stages and saved epochs are kept.
    """
    if isinstance(recipe, str):
        recipe = load_recipe(recipe)
    recipe = Recipe.make(recipe, "recipe")
    fabric = fabric_for(recipe.trainer)
    here = _Run(recipe, output_folder(out), fabric, console or Console(quiet=True))
    # Before further processes are started: what is refused is refused once, and at once.
    with own(here.out) if fabric.is_global_zero else nullcontext():
        if fabric.is_global_zero:
            refuse_another(recipe, here.out)
        fabric.launch()
        for job in plan(recipe):
            if isinstance(job.stage, Fit):
                here.train(job, job.stage)
            elif isinstance(job.stage, Measure):
                here.measure(job, job.stage)
        here.note()
        return here.records()


class _Run:
    """A recipe, its folder and its machine."""

    def __init__(self, recipe: Recipe, out: Path, fabric: Fabric, console: Console) -> None:
        self.recipe, self.out, self.fabric = recipe, out, fabric
        self.console = console if fabric.is_global_zero else Console(quiet=True)
        self._noted = not fabric.is_global_zero

    @cached_property
    def data(self) -> Dataset:
        """The images, read when the first stage needs them.

        Raises:
            DataError: if they are not those that an earlier start of this run read.
        """
        data, path = self.recipe.data.load(), self.out / DATA
        if os.path.lexists(path):
            data.refuse_unless(read_digests(inside(self.out, path)), str(self.out))
        return data

    @cached_property
    def digests(self) -> dict[str, str]:
        """Split -> what its images and labels are called."""
        return self.data.digests()

    def note(self) -> None:
        """Write recipe, machine and what the data is down, now that there is something to keep."""
        if not self._noted:
            write_atomically(self.out / "recipe.yaml", dump_recipe(self.recipe).encode())
            write_json(self.out / "environment.json", _environment(self.fabric))
            if not (self.out / DATA).exists():
                write_json(self.out / DATA, self.digests)
            self._noted = True

    def alone(self, folder: Path) -> AbstractContextManager[None]:
        """The first process is the only writer of a checkpoint's folder; a command that measures it is waited for."""
        return awaited(folder, self._told) if self.fabric.is_global_zero else nullcontext()

    def _told(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def records(self) -> list[Record]:
        """What was measured so far."""
        return read_records(self.out) if os.path.lexists(self.out / RESULTS) else []

    def train(self, job: Job, stage: Fit) -> None:
        """One training stage: start network, masks, fit, checkpoint."""
        folder = self.out / job.path
        # The first process decides: the others may look only after it has finished the stage.
        if self.fabric.broadcast(finished(folder)):
            if self.fabric.is_global_zero:
                with suppress(BusyError), own(folder):  # which sweeps what a killed run has left
                    _clear(folder)
            self.console.print(f"{job.path}: done before")
            return
        with self.alone(folder):
            self._train(job, stage, folder)

    def _train(self, job: Job, stage: Fit, folder: Path) -> None:
        recipe, fabric = self.recipe, self.fabric
        model, before = self._start(job)
        view = MaskView(fabric.to_device(model), stage.exempt)
        teacher = self._teacher(job)
        pruning = None
        if stage.pruner is not None:
            pruning = prune(view, stage.pruner, stage.budget, stage.structure, self._probe(stage, teacher))
        validate = Validate(recipe, stage, self.data.validation, fabric, model)
        seed = _seed(recipe.seed, stage.name)
        batches = self.data.train.batches(
            stage.batch_size,
            seed=seed,
            augment=True,
            shuffle=True,
            drop_last=len(self.data.train) >= stage.batch_size * fabric.world_size,
            device=fabric.device,
            rank=fabric.global_rank,
            world=fabric.world_size,
        )
        hooks: list[Hook] = [validate, _Note(self)]
        if pruning is not None:
            hooks.insert(0, pruning)
        if fabric.is_global_zero:
            bar = ProgressBar(job.path, self.console)
            hooks += [Log(job.path, self.out / "metrics.jsonl", self.out / "tensorboard", bar.on_note), bar]
        history = fit(
            model,
            view.train(stage.over, train_norm=stage.train_norm) if stage.epochs else [],
            batches,
            stage.objective or recipe.objective,
            epochs=stage.epochs,
            optim=stage.optim,
            threat=recipe.threat,
            teacher=teacher,
            seed=seed,
            fabric=fabric,
            channels_last=recipe.trainer.channels_last,
            compile=recipe.trainer.compile,
            state=folder / STATE,
            key=_key(recipe, job, stage),
            hooks=hooks,
        )
        if pruning is not None:
            pruning.finish()
        if fabric.is_global_zero:
            if validate.best:
                model.load_state_dict(validate.best)
            view.freeze()
            channels, side, _ = self.data.shape
            meta = Meta(
                net=recipe.net,
                num_classes=self.data.num_classes,
                in_channels=channels,
                image_size=side,
                threat=recipe.threat,
                pruner=before.pruner if stage.pruner is None else stage.pruner.kind,
                recipe=recipe.plain(),
                metrics=history[-1] if history else {},
                data=self.digests,
            )
            self.note()
            save(folder, model, meta)
            _clear(folder)
        fabric.barrier()

    def _probe(self, stage: Fit, teacher: nn.Module | None) -> Probe:
        """What the stage's pruner may look at; the same on every process."""
        seed = _seed(self.recipe.seed, f"{stage.name}/scores")
        device = self.fabric.device

        def batches() -> Iterator[Batch]:
            return self.data.train.batches(stage.batch_size, seed=seed, shuffle=True, device=device).epoch(0)

        objective = stage.objective or self.recipe.objective
        return Probe(torch.Generator(device).manual_seed(seed), objective, self.recipe.threat, batches, teacher)

    def _teacher(self, job: Job) -> nn.Module | None:
        if job.teacher is None:
            return None
        model = self._open(self.out / job.teacher).network()
        return self.fabric.to_device(plain_copy(model).eval().requires_grad_(False))

    def _start(self, job: Job) -> tuple[nn.Module, Meta]:
        if job.start is not None:
            checkpoint = self._open(self.out / job.start)
            return checkpoint.network(), checkpoint.meta
        torch.manual_seed(self.recipe.seed)
        channels, side, _ = self.data.shape
        model = self.recipe.net.build(self.data.num_classes, channels, side)
        _try(model, self.recipe.net.kind, self.data)
        return model, Meta()

    def measure(self, job: Job, stage: Measure) -> None:
        """One stage that measures, on the first process."""
        if not self.fabric.is_global_zero:
            return
        names = stage.transfer_from if isinstance(stage, Evaluate) else []
        others = {name: self._open(self._network(job, name)) for name in names}
        for target in job.targets:
            records = {record.stage: record for record in self.records()}
            checkpoint, before = self._open(self.out / target), records.get(target)
            if before is not None and before.network not in (None, checkpoint.digest):
                before = None  # of weights that have been trained anew
            subject = subject_of(checkpoint, self.recipe, self.data)
            made = stage.made(subject, {name: other.digest for name, other in others.items()})
            rest = stage.rest(before, made, subject.total)
            if rest is None:
                self.console.print(f"{target}: measured before")
                continue

            def found(what: Any, checkpoint: Checkpoint = checkpoint, made: dict[str, str] = made) -> Record:
                how: Any = certify
                if isinstance(what, Evaluate):
                    how = partial(measure, surrogates={name: others[name] for name in what.transfer_from}, made=made)
                return how(checkpoint, self.recipe, what, data=self.data, fabric=self.fabric, console=self.console)

            with self.alone(checkpoint.folder):
                record = found(rest) if before is None else before.joined(found(rest))
                if (
                    isinstance(stage, Evaluate)
                    and len(record.robust_accuracy) > 1
                    and WORST not in record.robust_accuracy
                ):
                    record = record.joined(found(stage))  # of one that is on file the verdicts are gone
            self.note()
            records[target] = record.model_copy(update={"stage": target})
            write_json(self.out / RESULTS, [record.plain() for record in records.values()])

    def _open(self, folder: Path) -> Checkpoint:
        """A checkpoint of this run. The recipe, which the user gave, says which factory may be called for it."""
        return open_checkpoint(folder, trust_code=self.recipe.net)

    def _network(self, job: Job, stage: str) -> Path:
        """Where the network of a stage lies, seen from a job: in its own branch, or before the branches."""
        branch = (self.out / job.path).parent / stage
        return branch if finished(branch) else self.out / stage


def _clear(folder: Path) -> None:
    """Remove what a finished stage does not need any more."""
    for leftover in both(folder / STATE):
        leftover.unlink(missing_ok=True)


class _Note(Hook):
    """Writes down what is run, before the first epoch is saved."""

    def __init__(self, here: _Run) -> None:
        self._here = here

    def on_epoch(self, epoch: int, model: nn.Module, metrics: dict[str, float]) -> None:
        self._here.note()


def _try(model: nn.Module, name: str, data: Dataset) -> None:
    """See that the network takes the images and has a logit for each class, before anything is trained."""
    try:
        with evaluating(model), torch.no_grad():
            logits = model(torch.zeros(1, *data.shape))
    except RuntimeError as error:
        raise SpecError(f"net {name!r} does not take images of shape {data.shape}: {error}") from None
    if tuple(logits.shape) != (1, data.num_classes):
        raise SpecError(f"net {name!r} returns {tuple(logits.shape)} for one image of {data.num_classes} classes")


def _seed(seed: int, purpose: str) -> int:
    """A seed of its own for every purpose; the same for all branches, so that they see the same batches.

    It has 32 bits: torch's generator on the CPU ignores the rest.
    """
    return zlib.crc32(f"{seed}/{purpose}".encode())


def _key(recipe: Recipe, job: Job, stage: Fit) -> str:
    """What a saved state must have been trained with."""
    settings = recipe.plain() | {"trainer": None, "stages": None, "compare": None, "about": None}
    return fingerprint(recipe=settings, stage=stage.plain(), path=job.path)


def refuse_another(recipe: Recipe, out: Path) -> None:
    """See that a run in `out`, if there is one, trains the same networks; machine and evaluations may differ.

    Raises:
        SpecError: if it is a run of another recipe.
    """
    path = out / "recipe.yaml"
    if (out / STUDY).exists():
        raise SpecError(f"{out} holds a study; choose another --out")
    if not os.path.lexists(path):
        return
    written = read_recipe(inside(out, path))
    old, new = (
        r.plain() | {"trainer": None, "stages": [stage.plain() for stage in r.stages if isinstance(stage, Fit)]}
        for r in (written, recipe)
    )
    if old != new:
        keys = [key for key in new if old.get(key) != new[key]]
        others = ", ".join(keys)
        raise SpecError(f"{out} holds a run of another recipe ({path.name} differs in {others}); choose another --out")


def _environment(fabric: Fabric) -> dict[str, Any]:
    device = torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else platform.processor()
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "device": f"{fabric.device.type} {device or platform.machine()}",
        "processes": fabric.world_size,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
