"""From the options of `hydraprune prune` to a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydraprune.pruners import PRUNERS


def prune_recipe(
    *,
    net: str,
    data: str,
    weights: Path | None,
    objective: str,
    threat: dict[str, str],
    sparsity: str,
    pruner: str,
    normalize: str | None,
) -> dict[str, Any]:
    """The settings of a recipe with the paper's schedule: 100 epochs if there are no weights, then 20, then 100."""
    pretrain = {"kind": "fit", "name": "pretrain", "over": "weights", "epochs": 100, "optim": {"lr": 0.1}}
    over = PRUNERS.get(pruner).over
    stages = [
        {
            "kind": "fit",
            "name": "prune",
            "over": over or "scores",
            "epochs": 20 if over else 0,
            "optim": {"lr": 0.1 if over == "scores" else 0.01},
            "pruner": {"kind": pruner},
            "budget": {"kind": "uniform", "sparsity": sparsity},
        },
        {"kind": "fit", "name": "finetune", "over": "weights", "epochs": 100, "optim": {"lr": 0.01}},
        {"kind": "evaluate", "attacks": [{"kind": "pgd"}]},
    ]
    return {
        "name": f"prune-{net}".replace(":", "-"),
        "data": {"kind": data},
        "net": {"kind": net, "weights": None if weights is None else str(weights), "normalize": normalize},
        "threat": threat,
        "objective": {"kind": objective},
        "stages": stages if weights is not None else [pretrain, *stages],
    }
