"""What cells have in common: the stages before the first pruning stage, trained once."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydraprune.core.files import read_json, write_atomically, write_json
from hydraprune.core.fingerprint import fingerprint
from hydraprune.recipes.schema import Recipe
from hydraprune.recipes.stages import Measure, Stage
from hydraprune.recipes.training import Fit
from hydraprune.runs.files import BESIDE, DATA, MASKS, META, METRICS, MODEL, RESULTS, finished


def trunk(recipe: Recipe) -> Recipe | None:
    """The recipe's stages before the first pruning stage, and what is measured of them; None if there are none."""
    first: list[Stage] = []
    for stage in recipe.stages:
        if stage.trains:
            if not isinstance(stage, Fit) or stage.pruner is not None:
                break
            first.append(stage)
    if not first:
        return None
    names, measures, last = {stage.name for stage in first}, [], ""
    for stage in recipe.stages:
        if stage.trains:
            last = stage.name
        elif isinstance(stage, Measure) and names.issuperset(stage.others):
            of = [name for name in stage.of or [last] if name in names]
            measures += [stage.model_copy(update={"of": of})] if of else []
    stages = [stage.plain() for stage in [*first, *measures]]
    about = f"pre-training of {recipe.name.partition('/')[0]}"
    changes: dict[str, Any] = {"name": "shared", "about": about, "stages": stages, "variables": {}, "source": None}
    return Recipe.parse(recipe.plain() | changes, "shared")


def key(recipe: Recipe) -> str:
    """What names trained alike have in common: a digest of all settings that training depends on."""
    settings = recipe.training() | {"name": None, "trainer": recipe.trainer.plain(), "stages": recipe.trained()}
    return fingerprint(settings=settings)


def adopt(recipe: Recipe, shared: Path, out: Path) -> None:
    """Put the finished stages of the trunk `recipe` in `shared`, and what was measured of them, into the run `out`."""
    for stage in recipe.stages:
        if stage.trains and not finished(out / stage.name):
            (out / stage.name).mkdir(parents=True, exist_ok=True)
            for file in (MODEL, MASKS, META):  # the one that marks a whole checkpoint comes last
                _link(shared / stage.name / file, out / stage.name / file)
        for file in BESIDE:
            if (shared / stage.name / file).exists() and not (out / stage.name / file).exists():
                _link(shared / stage.name / file, out / stage.name / file)
        for lines in (shared / stage.name).glob("*.jsonl"):  # which later commands continue in place
            if not (out / stage.name / lines.name).exists():
                write_atomically(out / stage.name / lines.name, lines.read_bytes())
    results = {record["stage"]: record for record in _records(out)} | {r["stage"]: r for r in _records(shared)}
    if results:
        write_json(out / RESULTS, list(results.values()))
    for file in (DATA, METRICS):
        if not (out / file).exists():
            with suppress(FileNotFoundError):
                write_atomically(out / file, (shared / file).read_bytes())


def _records(run: Path) -> list[dict[str, object]]:
    path = run / RESULTS
    return read_json(path) if path.exists() else []


def _link(source: Path, target: Path) -> None:
    """A hard link, which costs nothing since files are only ever replaced; a copy where there are none."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
