"""From the options of `hydraprune prune` to a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydraprune.recipes import library


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
    settings = {
        "name": f"prune-{net}".replace(":", "-"),
        "data": {"kind": data},
        "net": {"kind": net, "weights": None if weights is None else str(weights), "normalize": normalize},
        "threat": threat,
        "objective": {"kind": objective},
        "pruner": pruner,
        "sparsity": sparsity,
    }
    values = library.changed(library.whole("base-own"), settings)
    if weights is not None:
        values["stages"] = [stage for stage in values["stages"] if stage.get("name") != "pretrain"]
    return values
