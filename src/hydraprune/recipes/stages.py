"""The stages of a recipe: what is trained, pruned and measured, in order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hydraprune.attacks import ATTACKS
from hydraprune.attacks.transfer import described, transferred
from hydraprune.core.attack import Attack
from hydraprune.core.objective import Objective
from hydraprune.core.registry import Registry
from hydraprune.core.results import Record, Subject
from hydraprune.core.spec import Spec, nearest
from hydraprune.core.threat import ThreatModel
from hydraprune.data.cache import files_digest
from hydraprune.masks import BUDGETS, STRUCTURES
from hydraprune.masks.budgets import Budget
from hydraprune.masks.source import Over
from hydraprune.masks.structures import Structure, Weight
from hydraprune.objectives import OBJECTIVES
from hydraprune.pruners import PRUNERS
from hydraprune.pruners.base import Pruner
from hydraprune.train import Optim

AnyObjective = Annotated[Objective, OBJECTIVES]
AnyPruner = Annotated[Pruner, PRUNERS]
AnyBudget = Annotated[Budget, BUDGETS]
AnyStructure = Annotated[Structure, STRUCTURES]
AnyAttack = Annotated[Attack, ATTACKS]


class Validation(Spec):
    """What is measured on the held-out validation images after each epoch.

    Args:
        samples: how many of them; 0 measures nothing.
        steps: PGD steps; 0 measures clean accuracy only.
        every: epochs between measurements; the last epoch is always measured.
    """

    samples: int = Field(default=500, ge=0)
    steps: int = Field(default=10, ge=0)
    every: int = Field(default=1, ge=1)


class Stage(Spec):
    """One step of a recipe."""

    kind: str
    name: str = Field(pattern=r"^[A-Za-z0-9][\w-]*$")


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
        select: which epoch's network the stage hands on: the `last`, or the `best` on validation images.
        validation: what is measured after each epoch.
        objective: another objective than the recipe's; without a `kind`, what changes in the recipe's for this stage,
            such as `{ramp: {length: 0}}`.
        teacher: name of an earlier stage whose network the objective distils from.
    """

    kind: Literal["fit"] = "fit"
    over: Over
    epochs: int = Field(ge=0)
    batch_size: int = Field(default=128, ge=1)
    optim: Optim = Optim()
    pruner: AnyPruner | None = None
    budget: AnyBudget | None = None
    structure: AnyStructure = Weight()
    exempt: list[str] = []
    train_norm: bool = True
    select: Literal["last", "best"] = "last"
    validation: Validation = Validation()
    objective: AnyObjective | None = None
    teacher: str | None = None

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
        if self.select == "best" and self.pruner is not None and self.pruner.paced:
            raise ValueError(f"masks of pruner {self.pruner.kind!r} are found by the last epoch; use `select: last`")
        if self.select == "best" and not self.validation.samples:
            raise ValueError("select: best needs validation images; set validation.samples")
        return self


class Measure(Stage, ABC):
    """A stage that measures networks and changes none.

    Args:
        of: names of the stages whose networks are measured; None takes the last one before this stage.
        samples: number of test images, from the first on; None takes all.
    """

    of: list[str] | None = None
    samples: int | None = Field(default=None, ge=1)

    @property
    def named(self) -> list[str]:
        """The stages that it names, which must come before it."""
        return self.of or []

    @abstractmethod
    def check(self, threat: ThreatModel | None) -> None:
        """Raise a ValueError unless this can be measured under the recipe's threat model."""

    @abstractmethod
    def made(self, subject: Subject, surrogates: Mapping[str, str]) -> dict[str, str]:
        """Name of each figure -> the fingerprint of all that it depends on, the number of images apart.

        Args:
            subject: what is measured.
            surrogates: name -> digest of each other network that takes part.
        """

    @abstractmethod
    def rest(self, before: Record | None, made: Mapping[str, str], total: int) -> Self | None:
        """What is left to measure of a network that has this record; None if nothing is.

        Args:
            before: what was found so far.
            made: of this stage; a figure that was made otherwise does not count.
            total: number of test images.
        """

    def wanted(self, total: int) -> int:
        """How many test images are measured, of `total`."""
        return min(self.samples or total, total)


class Evaluate(Measure):
    """A stage that measures clean and robust accuracy on test images, and accuracy under common corruptions.

    Args:
        name: what `--set stages.NAME...` calls it.
        attacks: the adversaries.
        attack_samples: attack kind -> number of images, for an attack too slow for all of them.
        transfer_from: names of stages on whose networks images are found that are then tried on those of `of`.
        corruptions: `true` for those that are made here, or the folder of CIFAR-10-C; needs no threat model.
        batch_size: images that are attacked at once; a killed run loses no more of them.
    """

    kind: Literal["evaluate"] = "evaluate"
    name: str = "evaluate"
    attacks: list[AnyAttack] = []
    attack_samples: dict[str, Annotated[int, Field(ge=1)]] = {}
    transfer_from: list[str] = []
    corruptions: bool | Path = False
    batch_size: int = Field(default=500, ge=1)

    @property
    def named(self) -> list[str]:
        return [*(self.of or []), *self.transfer_from]

    @property
    def corrupted_by(self) -> str | None:
        """What records call the source of the corruptions; None without."""
        if isinstance(self.corruptions, Path):
            return self.corruptions.resolve().name
        return "built-in" if self.corruptions else None

    @model_validator(mode="after")
    def _known(self) -> Evaluate:
        if not self.attacks and not self.corruptions:
            raise ValueError("nothing to measure; add `attacks: [pgd]` or `corruptions: true`")
        names, kinds = [attack.name for attack in self.attacks], [attack.kind for attack in self.attacks]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two attacks are called {name!r}; remove one, or evaluate twice")
        for kind in self.attack_samples:
            if kind not in kinds:
                raise ValueError(f"attack_samples: no attack {kind!r} is run; {nearest(kind, kinds)}")
        return self

    def check(self, threat: ThreatModel | None) -> None:
        if threat is None and (self.attacks or self.transfer_from):
            raise ValueError(f"stage {self.name!r} has attacks, but the recipe has no threat model")
        for attack in self.attacks:
            if threat is not None and threat.norm not in attack.norms:
                raise ValueError(f"attack {attack.name!r} works in {' or '.join(attack.norms)}, not in {threat.norm}")

    def made(self, subject: Subject, surrogates: Mapping[str, str]) -> dict[str, str]:
        # Random numbers of an attack are drawn for a batch at a time.
        how = {"precision": "float32", "batch_size": self.batch_size}
        found = {attack.name: subject.made(attack=attack.plain(), **how) for attack in self.attacks}
        for name, digest in surrogates.items():
            found[transferred(name)] = subject.made(attack=described(name, digest), **how)
        if self.corrupted_by is not None:
            origin = self.corruptions if isinstance(self.corruptions, Path) else None
            files = [] if origin is None else sorted(str(file) for file in origin.glob("*.npy"))
            anyone = replace(subject, threat=None)
            found[self.corrupted_by] = anyone.made(corruptions=files_digest(files), precision="float32")
        return found

    def rest(self, before: Record | None, made: Mapping[str, str], total: int) -> Self | None:
        if before is None:
            return self
        known = {name for name, how in before.made.items() if made.get(name) == how}

        def lacks(name: str, limit: int | None = None) -> bool:
            wanted = min(self.wanted(total), limit or total)
            return name not in known or name not in before.robust_accuracy or before.tried(name) < wanted

        source = self.corrupted_by
        corrupted = before.corrupted.get(source) if source in known else None
        enough = corrupted is not None and corrupted.samples >= self.wanted(total)
        rest = self.model_copy(
            update={
                "attacks": [a for a in self.attacks if lacks(a.name, self.attack_samples.get(a.kind))],
                "transfer_from": [name for name in self.transfer_from if lacks(transferred(name))],
                "corruptions": False if enough else self.corruptions,
            }
        )
        return rest if rest.attacks or rest.transfer_from or rest.corruptions else None


STAGES: Registry[Stage] = Registry(
    "stage",
    Stage,
    {
        "fit": "hydraprune.recipes.stages:Fit",
        "evaluate": "hydraprune.recipes.stages:Evaluate",
        "certify": "hydraprune.recipes.certify:Certify",
    },
)
