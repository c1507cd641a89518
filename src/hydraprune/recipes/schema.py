"""A recipe: everything that one experiment needs, validated before anything runs."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from hydraprune.core.objective import Objective
from hydraprune.core.spec import Spec, nearest
from hydraprune.core.threat import ThreatModel
from hydraprune.data import SOURCES, Source
from hydraprune.nets import Net
from hydraprune.recipes import STAGES
from hydraprune.recipes.stages import AnyObjective, Stage
from hydraprune.recipes.variables import Variable
from hydraprune.train.machine import Trainer

AnySource = Annotated[Source, SOURCES]


class Provenance(Spec):
    """Where an experiment comes from.

    Args:
        paper: such as `arXiv:2002.10509`.
        place: table or section.
        reported: the numbers that were read there, in percent: network -> figure -> number. A network is `dense`, or
            a pruner and the sparsity, such as `hydra 0.9`.
    """

    paper: str
    place: str = ""
    reported: dict[str, dict[str, float]] = {}


class Recipe(Spec):
    """One experiment: the objective is written once, and the stages say over which tensors it is minimised.

    Args:
        name: of the experiment.
        about: one line for `hydraprune list`.
        seed: of initial weights, data order, augmentation, attacks and evaluation.
        data: the images.
        net: the network.
        threat: the adversary; None for natural training.
        objective: what is minimised.
        stages: in order.
        variables: words for settings that one changes, such as `sparsity`: `--set sparsity=0.99`, or an axis of a
            study.
        trainer: the machine.
        source: where the experiment comes from.
    """

    name: str
    about: str = ""
    seed: int = Field(default=0, ge=0, lt=2**31)
    data: AnySource
    net: Net
    threat: ThreatModel | None = None
    objective: AnyObjective
    stages: list[Annotated[Stage, STAGES]] = Field(min_length=1)
    variables: dict[str, Variable] = {}
    trainer: Trainer = Trainer()
    source: Provenance | None = None

    @model_validator(mode="before")
    @classmethod
    def _whole_objectives(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("stages"), list):
            return values
        return values | {"stages": [_whole(stage, values.get("objective")) for stage in values["stages"]]}

    @model_validator(mode="after")
    def _coherent(self) -> Recipe:
        names, fields = [stage.name for stage in self.stages], type(self).model_fields
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two stages are called {name!r}; give each its own name")
        for position, stage in enumerate(self.stages):
            stage.check(self, self.stages[:position])
        if not any(stage.trains for stage in self.stages):
            raise ValueError("no stage trains; add one of kind fit")
        for word, variable in self.variables.items():
            if word in fields:
                raise ValueError(f"variables.{word}: {word!r} is a setting of every recipe; choose another word")
            for path in variable.paths():
                first, _, rest = path.partition(".")
                if first not in fields:
                    raise ValueError(f"variables.{word}: no setting {path!r}; {nearest(first, fields)}")
                if first == "stages" and (stage_name := rest.partition(".")[0]) not in names:
                    raise ValueError(f"variables.{word}: no stage {stage_name!r}; {nearest(stage_name, names)}")
        return self

    def training(self) -> dict[str, Any]:
        """The settings that all stages which train depend on, in JSON; those of the stages themselves apart."""
        return self.plain() | dict.fromkeys(("about", "stages", "trainer", "variables"))

    def trained(self) -> list[dict[str, Any]]:
        """The settings of the stages that train."""
        return [stage.plain() for stage in self.stages if stage.trains]


def _whole(stage: Any, objective: Any) -> Any:
    """The settings of a stage with a whole objective, where they only change some of the recipe's."""
    changes = stage.get("objective") if isinstance(stage, dict) else None
    if isinstance(objective, str):
        objective = {"kind": objective}
    elif isinstance(objective, Objective):
        objective = objective.plain()
    if not isinstance(changes, dict) or "kind" in changes or not isinstance(objective, dict):
        return stage
    return stage | {"objective": _merged(objective, changes)}


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`values` with `changes`, group by group."""
    groups = {key: values[key] for key, change in changes.items() if isinstance(change, dict) and key in values}
    inner = {key: _merged(group, changes[key]) for key, group in groups.items() if isinstance(group, dict)}
    return values | changes | inner
