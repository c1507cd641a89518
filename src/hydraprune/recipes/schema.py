"""A recipe: everything that one experiment needs, validated before anything runs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hydraprune.core.objective import Objective
from hydraprune.core.spec import Number, Spec, nearest
from hydraprune.core.threat import ThreatModel
from hydraprune.data import SOURCES, Source
from hydraprune.nets import Net
from hydraprune.recipes.stages import STAGES, AnyObjective, AnyPruner, Fit, Measure, Stage

AnySource = Annotated[Source, SOURCES]


class Compare(Spec):
    """Runs everything from the first pruning stage on once for every pruner and sparsity, from one pre-training.

    Args:
        pruners: in place of the pruner that the recipe names.
        sparsities: in place of the sparsity of the recipe's budget.
        equal_epochs: give a pruner that fixes its mask at once the epochs that it does not spend on scores in the next
            stage over weights, so that all train equally long; the paper gives the baselines fewer.

    A dynamic pruner spends the epochs over scores on weights, with the optimizer of the next stage over weights.
    """

    pruners: list[AnyPruner] = Field(min_length=1)
    sparsities: list[Annotated[Number, Field(ge=0, lt=1)]] = Field(min_length=1)
    equal_epochs: bool = True

    @model_validator(mode="after")
    def _distinct(self) -> Compare:
        kinds = [pruner.kind for pruner in self.pruners]
        for kind in kinds:
            if kinds.count(kind) > 1:
                raise ValueError(f"pruner {kind!r} stands twice in compare.pruners; its folders would be the same")
        for sparsity in self.sparsities:
            if [f"{other:g}" for other in self.sparsities].count(f"{sparsity:g}") > 1:
                raise ValueError(f"sparsity {sparsity:g} stands twice in compare.sparsities; drop one")
        return self


class Trainer(Spec):
    """The machine, and how it computes.

    Args:
        device: `auto` takes the GPU if there is one.
        devices: processes, each with its own device; more than 1 averages gradients over them.
        precision: `bf16` is autocast, with weights kept in float32; `auto` takes it on a GPU only.
        channels_last: memory format of image batches.
        compile: compile the network that attacks see.
        threads: CPU threads of a process; None takes all cores. Networks of a few thousand weights gain nothing from
            more than 1.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = Field(default=1, ge=1, le=1024)
    precision: Literal["auto", "float32", "bf16"] = "auto"
    channels_last: bool = True
    compile: bool = False
    threads: int | None = Field(default=None, ge=1, le=1024)


class Provenance(Spec):
    """Where an experiment comes from.

    Args:
        paper: such as `arXiv:2002.10509`.
        place: table or section.
        reported: the numbers that were read there, in percent, by the name of the figure.
    """

    paper: str
    place: str = ""
    reported: dict[str, float] = {}


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
        compare: pruners and sparsities to run side by side.
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
    compare: Compare | None = None
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
        names = [stage.name for stage in self.stages]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two stages are called {name!r}; give each its own name")
        fits: list[str] = []
        for stage in self.stages:
            if isinstance(stage, Fit):
                objective = stage.objective or self.objective
                if stage.teacher is None and "teacher" in objective.networks():
                    raise ValueError(
                        f"stage {stage.name!r} learns from a teacher (objective {objective.kind!r}), but names none; "
                        "add `teacher: NAME` of an earlier stage"
                    )
                if stage.teacher is not None and stage.teacher not in fits:
                    raise ValueError(
                        f"stage {stage.name!r} has the teacher {stage.teacher!r}, no fit before it; "
                        f"{nearest(stage.teacher, fits)}"
                    )
                fits.append(stage.name)
                if stage.select == "best" and not self.data.validation:
                    raise ValueError(f"stage {stage.name!r} selects the best epoch, but data.validation is 0; raise it")
            if isinstance(stage, Measure):
                if not fits:
                    need = f"stage {stage.name!r} has no network to {stage.kind}"
                    raise ValueError(f"{need}; put one of kind fit before it")
                for name in stage.named:
                    if name not in fits:
                        raise ValueError(
                            f"stage {stage.name!r} evaluates {name!r}, no fit before it; {nearest(name, fits)}"
                        )
                stage.check(self.threat)
        if not fits:
            raise ValueError("no stage trains; add one of kind fit")
        if self.compare is not None and not any(isinstance(s, Fit) and s.pruner for s in self.stages):
            raise ValueError("compare needs a stage with a pruner")
        if self.compare is not None and any(isinstance(s, Fit) and s.pruner and not s.budget for s in self.stages):
            raise ValueError("compare varies the budget's sparsity, but structure 'n:m' takes no budget; use a study")
        return self


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
