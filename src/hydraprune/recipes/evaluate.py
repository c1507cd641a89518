"""The stage that attacks networks, and corrupts their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from hydraprune.attacks import ATTACKS
from hydraprune.core.attack import Attack
from hydraprune.core.extras import extra
from hydraprune.core.results import WORST, Record, Subject
from hydraprune.core.spec import nearest
from hydraprune.data.cache import files_digest
from hydraprune.recipes.measure import measure
from hydraprune.recipes.stages import Bench, Measure, Stage
from hydraprune.runs.checkpoint import Checkpoint

if TYPE_CHECKING:
    from hydraprune.recipes.schema import Recipe


class Evaluate(Measure):
    """A stage that measures clean and robust accuracy on test images, and accuracy under common corruptions.

    Args:
        name: what `--set stages.NAME...` calls it.
        attacks: the adversaries; another network that one works with, such as the origin of `transfer`, is that of the
            stage of this name.
        attack_samples: attack kind -> number of images, for an attack too slow for all of them.
        corruptions: `true` for those that are made here, or the folder of CIFAR-10-C; needs no threat model.
        batch_size: images that are attacked at once; a killed run loses no more of them.
    """

    kind: Literal["evaluate"] = "evaluate"
    name: str = "evaluate"
    attacks: list[Annotated[Attack, ATTACKS]] = []
    attack_samples: dict[str, Annotated[int, Field(ge=1)]] = {}
    corruptions: bool | Path = False
    batch_size: int = Field(default=500, ge=1)

    @property
    def others(self) -> list[str]:
        return sorted({name for attack in self.attacks for name in attack.networks()})

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

    def require(self) -> None:
        super().require()
        if self.corruptions:
            with extra("images", "measuring corruptions"):
                import_module("hydraprune.evaluation.corruptions")

    def check(self, recipe: Recipe, before: Sequence[Stage]) -> None:
        super().check(recipe, before)
        threat = recipe.threat
        if threat is None and self.attacks:
            raise ValueError(f"stage {self.name!r} has attacks, but the recipe has no threat model")
        for attack in self.attacks:
            if threat is not None and threat.norm not in attack.norms:
                raise ValueError(f"attack {attack.name!r} works in {' or '.join(attack.norms)}, not in {threat.norm}")

    def made(self, subject: Subject, others: Mapping[str, str]) -> dict[str, str]:
        # Random numbers of an attack are drawn for a batch at a time.
        how = {"precision": "float32", "batch_size": self.batch_size}
        found = {}
        for attack in self.attacks:
            with_others = {"networks": {name: others[name] for name in attack.networks()}} if attack.networks() else {}
            found[attack.name] = subject.made(attack=attack.plain(), **with_others, **how)
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
                "corruptions": False if enough else self.corruptions,
            }
        )
        return rest if rest.attacks or rest.corruptions else None

    def measured(
        self,
        checkpoint: Checkpoint,
        bench: Bench,
        others: Mapping[str, Checkpoint] | None = None,
        made: Mapping[str, str] | None = None,
    ) -> Record:
        return measure(checkpoint, self, bench, others or {}, made or {})

    def apart(self, record: Record) -> bool:
        return len(record.robust_accuracy) > 1 and WORST not in record.robust_accuracy
