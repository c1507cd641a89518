"""Runs a recipe into a folder, and goes on where an earlier run of the same recipe stopped."""

from __future__ import annotations

import os
import platform
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from hydraprune.core.errors import SpecError
from hydraprune.core.files import inside, output_folder, write_atomically, write_json
from hydraprune.core.results import Record
from hydraprune.core.seeds import derived
from hydraprune.data import Dataset
from hydraprune.recipes.library import dump, load_recipe, read_recipe
from hydraprune.recipes.schema import Recipe
from hydraprune.recipes.stages import Bench, Stage
from hydraprune.runs.checkpoint import Checkpoint, open_checkpoint, read_digests
from hydraprune.runs.files import BOARD, DATA, ENVIRONMENT, METRICS, RECIPE, RESULTS, STUDY
from hydraprune.runs.lock import awaited, own
from hydraprune.runs.meta import versions
from hydraprune.runs.records import read_records
from hydraprune.train import Hook
from hydraprune.train.machine import Machine


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
    recipe.require()
    fabric = recipe.trainer.machine()
    here = Run(recipe, output_folder(out), fabric, console or Console(quiet=True))
    # Before further processes are started: what is refused is refused once, and at once.
    with own(here.out) if fabric.is_global_zero else nullcontext():
        if fabric.is_global_zero:
            refuse_another(recipe, here.out)
        fabric.launch()
        for stage in recipe.stages:
            stage.run(here)
        here.note()
        return here.records()


class Run:
    """A recipe that is run into a folder: what its stages share.

    Attributes:
        recipe: what is run.
        out: its folder.
        fabric: its machine.
        console: where progress is shown; quiet on all processes but the first.
    """

    def __init__(self, recipe: Recipe, out: Path, fabric: Machine, console: Console) -> None:
        self.recipe, self.out, self.fabric = recipe, out, fabric
        self.console = console if fabric.is_global_zero else Console(quiet=True)
        self.metrics, self.curves = out / METRICS, out / BOARD
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

    @cached_property
    def bench(self) -> Bench:
        """What it takes to measure a checkpoint."""
        return Bench(self.recipe, self.data, self.fabric, self.console)

    def seed(self, *purpose: str) -> int:
        """A seed of its own for every purpose, such as the name of a stage."""
        return derived(self.recipe.seed, *purpose)

    def folder(self, name: str) -> Path:
        """Where the network of a stage lies."""
        return self.out / name

    def before(self, stage: Stage) -> list[str]:
        """The stages before `stage` that train, the one whose network it takes up being the last."""
        position = self.recipe.stages.index(stage)
        return [earlier.name for earlier in self.recipe.stages[:position] if earlier.trains]

    def open(self, name: str) -> Checkpoint:
        """The checkpoint of a stage. The recipe, which the user gave, says which factory may be called for it."""
        return open_checkpoint(self.folder(name), trust_code=self.recipe.net)

    def note(self) -> None:
        """Write recipe, machine and what the data is down, now that there is something to keep."""
        if not self._noted:
            write_atomically(self.out / RECIPE, dump(self.recipe).encode())
            write_json(self.out / ENVIRONMENT, _environment(self.fabric))
            if not (self.out / DATA).exists():
                write_json(self.out / DATA, self.digests)
            self._noted = True

    def noting(self) -> Hook:
        """Notes the run before the first epoch is saved."""
        return _Note(self)

    def alone(self, folder: Path) -> AbstractContextManager[None]:
        """The first process is the only writer of a checkpoint's folder; a command that measures it is waited for."""
        return awaited(folder, self.tell) if self.fabric.is_global_zero else nullcontext()

    def tell(self, text: str) -> None:
        """One line for the user."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def records(self) -> list[Record]:
        """What was measured so far."""
        return read_records(self.out) if os.path.lexists(self.out / RESULTS) else []

    def record(self, name: str) -> Record | None:
        """What was measured so far of the network of a stage."""
        return next((record for record in self.records() if record.stage == name), None)

    def keep(self, record: Record) -> None:
        """Put a record on file, in place of the one of the same network."""
        self.note()
        records = {known.stage: known for known in self.records()} | {record.stage: record}
        write_json(self.out / RESULTS, [one.plain() for one in records.values()])


class _Note(Hook):
    """Writes down what is run, before the first epoch is saved."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def on_epoch(self, epoch: int, model: nn.Module, metrics: dict[str, float]) -> None:
        self._run.note()


def refuse_another(recipe: Recipe, out: Path) -> None:
    """See that a run in `out`, if there is one, trains the same networks; machine and evaluations may differ.

    Raises:
        SpecError: if it is a run of another recipe.
    """
    path = out / RECIPE
    if (out / STUDY).exists():
        raise SpecError(f"{out} holds a study; choose another --out")
    if not os.path.lexists(path):
        return
    written = read_recipe(inside(out, path))
    old, new = (r.training() | {"stages": r.trained()} for r in (written, recipe))
    if old != new:
        keys = [key for key in new if old.get(key) != new[key]]
        others = ", ".join(keys)
        raise SpecError(f"{out} holds a run of another recipe ({path.name} differs in {others}); choose another --out")


def _environment(fabric: Machine) -> dict[str, Any]:
    device = torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else platform.processor()
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "device": f"{fabric.device.type} {device or platform.machine()}",
        "processes": fabric.world_size,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
