"""The checkpoint that a command is about, its recipe, and what it takes to measure it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hydraprune.cli.console import console, tell
from hydraprune.core.errors import SpecError
from hydraprune.runs.files import META

if TYPE_CHECKING:
    from hydraprune.recipes.schema import Recipe
    from hydraprune.recipes.stages import Bench
    from hydraprune.runs.checkpoint import Checkpoint

Folder = Annotated[Path, typer.Argument(help="Folder of a finished stage, such as RUN/finetune")]


def opened_by(folder: Path, trust_code: bool) -> Checkpoint:
    """A checkpoint; what it makes us call is said before it is called."""
    from hydraprune.runs.checkpoint import open_checkpoint

    opened = open_checkpoint(folder, trust_code)
    if (calls := opened.calls()) is not None:
        tell(f"calling {calls}, named by {folder}")
    return opened


def recipe_of(checkpoint: Checkpoint, overrides: list[str] | None) -> Recipe:
    from hydraprune.recipes import library

    if checkpoint.meta.recipe is None:
        return _recipe_for(checkpoint, overrides or [])
    where = f"{checkpoint.folder / META}: recipe"
    library.written(checkpoint.meta.recipe, where)
    return library.resolve(checkpoint.meta.recipe, overrides or [], where)


def _recipe_for(checkpoint: Checkpoint, overrides: list[str]) -> Recipe:
    """A recipe for a network that none made: one of the paper's schedule, of which data and adversary are given."""
    from hydraprune.recipes import library

    folder, meta = checkpoint.folder, checkpoint.meta
    if meta.net is None:
        raise SpecError(
            f"{folder} does not say which network it holds; name what makes it: `hydraprune import {folder} "
            "--net package.module:factory --out FOLDER`, whose folder commands take"
        )
    if not any(re.match(r"data[.=]", override) for override in overrides):
        raise SpecError(
            f"{folder} was not made by a recipe, so its data is unknown; give it: --set data.kind=cifar10, and "
            "--set threat.eps=... for another radius than 8/255"
        )
    own: dict[str, Any] = {"name": folder.resolve().name, "net": meta.net.plain()}
    own |= {} if meta.threat is None else {"threat": meta.threat.plain()}
    return library.resolve(library.changed(library.whole("base-own"), own.items()), overrides, str(folder))


def bench_of(checkpoint: Checkpoint, recipe: Recipe) -> Bench:
    """What it takes; with the settings of the checkpoint's own, images must be those that it was made from."""
    from hydraprune.recipes.stages import Bench

    data, own = recipe.data.load(), checkpoint.meta.recipe or {}
    if recipe.data.plain() == own.get("data"):
        data.refuse_unless(checkpoint.meta.data, str(checkpoint.folder))
    return Bench(recipe, data, recipe.trainer.machine(), console)
