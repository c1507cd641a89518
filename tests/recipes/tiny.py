"""A recipe of a few seconds: every stage, with seven or eight optimizer steps altogether."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from hydraprune.recipes.library import resolve
from hydraprune.recipes.schema import Recipe

QUICK = {"samples": 10, "steps": 1}
TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"kind": "digits", "samples": 100},
    "net": {"kind": "cnn_digits"},
    "threat": {"norm": "linf", "eps": 0.1},
    "objective": {"kind": "trades", "steps": 1},
    "stages": [
        {"kind": "fit", "name": "pretrain", "over": "weights", "epochs": 2, "batch_size": 45, "validation": QUICK,
         "optim": {"lr": 0.05, "ema": 0.9}},
        {"kind": "fit", "name": "prune", "over": "scores", "epochs": 1, "batch_size": 45, "validation": QUICK,
         "pruner": "hydra", "budget": {"kind": "uniform", "sparsity": 0.9}},
        {"kind": "fit", "name": "finetune", "over": "weights", "epochs": 2, "batch_size": 45, "validation": QUICK,
         "optim": {"kind": "adam", "lr": 0.01}, "select": "best"},
        {"kind": "evaluate", "of": ["pretrain", "finetune"], "samples": 40,
         "attacks": ["fgsm", {"kind": "pgd", "steps": 2, "restarts": 1}]},
    ],
    "trainer": {"threads": 1, "device": "cpu"},
}  # fmt: skip


def tiny(*overrides: str) -> Recipe:
    return resolve(TINY, overrides, "tiny")


def contents(run: Path) -> dict[str, Any]:
    """What a run folder holds, apart from wall times and digests over them.

    File -> JSON, lines of JSON, tensors as bytes, or text.
    """
    found: dict[str, Any] = {}
    for file in sorted(run.rglob("*")):
        name = str(file.relative_to(run))
        if file.is_dir() or file.name.startswith(".") or name.startswith("tensorboard"):
            continue
        if file.suffix == ".json":
            found[name] = timeless(json.loads(file.read_text()))
        elif file.suffix == ".jsonl":
            found[name] = [timeless(json.loads(line)) for line in file.read_text().splitlines()]
        elif file.suffix == ".safetensors":
            tensors = load_file(file)
            found[name] = {name: (tuple(value.shape), value.numpy().tobytes()) for name, value in tensors.items()}
        else:
            found[name] = file.read_text()
    return found


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in ("seconds", "digest")}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def kept(folder: Path) -> tuple[int, int]:
    """Weights that are not zero, and all, over the convolutions and linear layers of a checkpoint."""
    weights = [value for value in load_file(folder / "model.safetensors").values() if value.dim() > 1]
    return sum(int(value.count_nonzero()) for value in weights), sum(value.numel() for value in weights)
