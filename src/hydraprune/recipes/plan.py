"""From a recipe to the list of things to do, each with its own folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hydraprune.recipes.schema import Compare, Recipe
from hydraprune.recipes.stages import Fit, Measure, Stage
from hydraprune.train import Optim


@dataclass(frozen=True)
class Job:
    """One stage in one branch.

    Attributes:
        path: folder inside the run, such as `finetune` or `hydra-0.9/finetune`.
        stage: what to do.
        start: path of the job whose network this one takes up; None starts from the recipe's net.
        teacher: path of the job whose network this one distils from.
        targets: for a stage that measures, the paths of the networks that it measures.
    """

    path: str
    stage: Stage
    start: str | None = None
    teacher: str | None = None
    targets: tuple[str, ...] = ()


def plan(recipe: Recipe) -> list[Job]:
    """Every job of `recipe`, in an order in which each finds what it starts from."""
    first = next((i for i, s in enumerate(recipe.stages) if isinstance(s, Fit) and s.pruner), len(recipe.stages))
    if recipe.compare is None:
        return _chain(recipe.stages, "", {}, None)
    trunk = _chain(recipe.stages[:first], "", {}, None)
    paths = {job.stage.name: job.path for job in trunk if isinstance(job.stage, Fit)}
    jobs = list(trunk)
    for stages, prefix in _branches(recipe.stages[first:], recipe.compare):
        jobs += _chain(stages, prefix, paths, next(reversed(paths.values()), None))
    return _measured_once(jobs)


def _chain(stages: list[Stage], prefix: str, before: dict[str, str], start: str | None) -> list[Job]:
    paths, jobs = dict(before), []
    for stage in stages:
        path = prefix + stage.name
        if isinstance(stage, Fit):
            jobs.append(Job(path, stage, start, paths[stage.teacher] if stage.teacher else None))
            paths[stage.name] = start = path
        elif isinstance(stage, Measure):
            names = stage.of if stage.of is not None else [next(reversed(paths))]
            jobs.append(Job(path, stage, targets=tuple(paths[name] for name in names)))
    return jobs


def _branches(stages: list[Stage], compare: Compare) -> list[tuple[list[Stage], str]]:
    """The stages from the first pruning on, once for every pruner and sparsity."""
    branches = []
    for sparsity in compare.sparsities:
        for pruner in compare.pruners:
            spare, branch = 0, []
            for position, stage in enumerate(stages):
                if isinstance(stage, Fit) and stage.pruner is not None and stage.budget is not None:
                    changes: dict[str, Any] = {
                        "pruner": pruner,
                        "budget": stage.budget.model_copy(update={"sparsity": sparsity}),
                    }
                    if stage.over == "scores" and pruner.over is None:
                        spare, changes = spare + stage.epochs, changes | {"epochs": 0}
                    elif stage.over == "scores" and pruner.over == "weights":
                        changes |= {"over": "weights", "optim": _optim_of_weights(stages[position:])}
                    if pruner.paced:
                        changes |= {"select": "last"}
                    stage = stage.model_copy(update=changes)
                elif isinstance(stage, Fit) and stage.over == "weights" and compare.equal_epochs:
                    stage, spare = stage.model_copy(update={"epochs": stage.epochs + spare}), 0
                branch.append(stage)
            branches.append((branch, f"{pruner.kind}-{sparsity:g}/"))
    return branches


def _optim_of_weights(stages: list[Stage]) -> Optim:
    """How the next stage over weights moves them: the rate for scores is not one for weights."""
    return next((s.optim for s in stages if isinstance(s, Fit) and s.over == "weights"), Optim())


def _measured_once(jobs: list[Job]) -> list[Job]:
    """The same jobs without the measurements of a network that an earlier branch makes already."""
    seen: set[tuple[str, str]] = set()
    kept = []
    for job in jobs:
        if isinstance(job.stage, Measure):
            targets = tuple(t for t in job.targets if (job.stage.name, t) not in seen)
            seen |= {(job.stage.name, target) for target in targets}
            job = Job(job.path, job.stage, targets=targets)
            if not targets:
                continue
        kept.append(job)
    return kept
