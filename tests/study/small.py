"""A study of a few seconds, and a stand-in for training that takes none."""

import json
from pathlib import Path
from typing import Any

from hydraprune.core.files import write_json
from hydraprune.core.results import Record
from hydraprune.recipes.library import dump
from hydraprune.recipes.schema import Recipe
from hydraprune.recipes.training import Fit
from hydraprune.study import Study

QUIET = {"samples": 0}
RECIPE: dict[str, Any] = {
    "name": "small",
    "data": {"kind": "digits", "samples": 60},
    "net": {"kind": "cnn_digits"},
    "threat": {"norm": "linf", "eps": 0.1},
    "objective": {"kind": "trades", "steps": 1},
    "stages": [
        {"kind": "fit", "name": "pretrain", "over": "weights", "epochs": 1, "batch_size": 50, "validation": QUIET},
        {"kind": "fit", "name": "prune", "over": "scores", "epochs": 1, "batch_size": 50, "validation": QUIET,
         "pruner": "hydra", "budget": {"kind": "uniform", "sparsity": 0.9}},
        {"kind": "fit", "name": "finetune", "over": "weights", "epochs": 1, "batch_size": 50, "validation": QUIET},
        {"kind": "evaluate", "of": ["pretrain", "finetune"], "samples": 20, "attacks": ["fgsm"]},
    ],
    "trainer": {"threads": 1, "device": "cpu"},
}  # fmt: skip
GRID: dict[str, Any] = {
    "method": {
        "hydra": {"stages.prune.pruner": "hydra"},
        "magnitude": {"stages.prune.pruner": "magnitude", "stages.prune.epochs": 0},
    },
    "sparsity": {"stages.prune.budget.sparsity": [0.5, 0.9]},
    "seed": [0, 1],
}


def study(**changes: Any) -> Study:
    return Study.parse({"name": "small", "recipe": RECIPE, "grid": GRID, **changes}, "small")


class Training:
    """Writes what a run would, with accuracies that `of` makes up, and remembers what was asked for."""

    def __init__(self, of=lambda recipe, pruner: 0.5):
        self.of = of
        self.names: list[str] = []

    def __call__(self, values: dict[str, Any], out: str) -> None:
        recipe, folder = Recipe.parse(values, "run"), Path(out)
        self.names.append(folder.name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text(dump(recipe))
        (folder / "metrics.jsonl").write_text("{}\n")
        path = folder / "results.json"
        records = {r["stage"]: r for r in json.loads(path.read_text())} if path.exists() else {}
        pruner = None
        for stage in recipe.stages:
            if isinstance(stage, Fit):
                pruner = stage.pruner.kind if stage.pruner else pruner
                for file in ("model.safetensors", "masks.safetensors", "checkpoint.json"):
                    if not (folder / stage.name / file).exists():
                        (folder / stage.name).mkdir(parents=True, exist_ok=True)
                        (folder / stage.name / file).write_text(f'{{"seed": {recipe.seed}}}')
                continue
            for target in stage.of:
                if target not in records:
                    mine = pruner if target != "pretrain" else None
                    removed = 0 if mine is None else next(s.budget.sparsity for s in recipe.stages if s.name == "prune")
                    records[target] = self.record(target, mine, removed, self.of(recipe, mine), recipe.seed)
        if records:
            write_json(path, list(records.values()))

    @staticmethod
    def record(stage: str, pruner: str | None, sparsity: float, accuracy: float, seed: int) -> dict[str, Any]:
        kept = round(1000 * (1 - sparsity))
        figures = {"clean_accuracy": accuracy, "robust_accuracy": {"fgsm": accuracy / 2}, "samples": 20}
        return Record(
            stage=stage, pruner=pruner, sparsity=sparsity, kept=kept, total=1000, seed=seed, seconds=1.0, **figures
        ).plain()
