"""The contract of a recipe's stages: some train networks, others measure them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import Field
from rich.console import Console

from hydraprune.core.objective import Objective
from hydraprune.core.results import Record, Subject
from hydraprune.core.spec import Spec, nearest
from hydraprune.data import Dataset
from hydraprune.objectives import OBJECTIVES
from hydraprune.runs.checkpoint import Checkpoint
from hydraprune.train.machine import Machine

if TYPE_CHECKING:
    from hydraprune.recipes.runner import Run
    from hydraprune.recipes.schema import Recipe

AnyObjective = Annotated[Objective, OBJECTIVES]


class Stage(Spec, ABC):
    """One step of a recipe.

    Attributes:
        trains: whether it leaves a network, as a checkpoint in the folder of its name, for later stages to take up.
    """

    kind: str
    name: str = Field(pattern=r"^[A-Za-z0-9][\w-]*$")
    trains: ClassVar[bool] = False

    def check(self, recipe: Recipe, before: Sequence[Stage]) -> None:
        """Raise a ValueError unless it can run in `recipe`, after the stages `before`."""

    @abstractmethod
    def run(self, run: Run) -> None:
        """Do what it stands for, or go on where a killed run stopped; called on every process."""


@dataclass(frozen=True)
class Bench:
    """What it takes to measure a checkpoint.

    Attributes:
        recipe: threat model and seed.
        data: of which the test images are used.
        fabric: the machine.
        console: for progress.
    """

    recipe: Recipe
    data: Dataset
    fabric: Machine
    console: Console

    def subject(self, checkpoint: Checkpoint) -> Subject:
        """What is measured: the network, on the test images, under the recipe's threat model and seed."""
        test = self.data.test
        return Subject(checkpoint.digest, test.digest(), len(test), self.recipe.threat, self.recipe.seed)


class Measure(Stage, ABC):
    """A stage that measures networks and changes none; what is on file already is not measured again.

    Args:
        of: names of the stages whose networks are measured; None takes the last one before this stage.
        samples: number of test images, from the first on; None takes all.
    """

    of: list[str] | None = None
    samples: int | None = Field(default=None, ge=1)

    @property
    def others(self) -> list[str]:
        """Stages whose networks take part, though they are not what is measured."""
        return []

    @abstractmethod
    def made(self, subject: Subject, others: Mapping[str, str]) -> dict[str, str]:
        """Name of each figure -> the fingerprint of all that it depends on, the number of images apart.

        Args:
            subject: what is measured.
            others: name -> digest of each other network that takes part.
        """

    @abstractmethod
    def rest(self, before: Record | None, made: Mapping[str, str], total: int) -> Self | None:
        """What is left to measure of a network that has this record; None if nothing is.

        Args:
            before: what was found so far.
            made: of this stage; a figure that was made otherwise does not count.
            total: number of test images.
        """

    @abstractmethod
    def measured(
        self,
        checkpoint: Checkpoint,
        bench: Bench,
        others: Mapping[str, Checkpoint] | None = None,
        made: Mapping[str, str] | None = None,
    ) -> Record:
        """What is found of a checkpoint, whose folder gets the files of it.

        Args:
            checkpoint: of a finished stage.
            bench: what it takes.
            others: name -> checkpoint of each other network that takes part.
            made: fingerprints of further figures, which the stage has on file: what was made otherwise is left out.
        """

    def apart(self, record: Record) -> bool:
        """Whether figures that need all others at once are missing in a record that was joined from parts."""
        return False

    def wanted(self, total: int) -> int:
        """How many test images are measured, of `total`."""
        return min(self.samples or total, total)

    def check(self, recipe: Recipe, before: Sequence[Stage]) -> None:
        trained = [stage.name for stage in before if stage.trains]
        if not trained:
            raise ValueError(
                f"stage {self.name!r} has no network to {self.kind}; put one that trains before it, such as kind fit"
            )
        for name in [*(self.of or []), *self.others]:
            if name not in trained:
                raise ValueError(f"stage {self.name!r} evaluates {name!r}, no fit before it; {nearest(name, trained)}")

    def run(self, run: Run) -> None:
        if not run.fabric.is_global_zero:
            return
        others, bench = {name: run.open(name) for name in self.others}, run.bench
        for name in self.of or [run.before(self)[-1]]:
            checkpoint, before = run.open(name), run.record(name)
            if before is not None and before.network not in (None, checkpoint.digest):
                before = None  # of weights that have been trained anew
            subject = bench.subject(checkpoint)
            made = self.made(subject, {name: other.digest for name, other in others.items()})
            rest = self.rest(before, made, subject.total)
            if rest is None:
                run.tell(f"{name}: measured before")
                continue
            with run.alone(checkpoint.folder):
                record = rest.measured(checkpoint, bench, others, made)
                record = record if before is None else before.joined(record)
                if self.apart(record):  # of one that is on file the parts are gone
                    record = record.joined(self.measured(checkpoint, bench, others, made))
            run.keep(record.model_copy(update={"stage": name}))
