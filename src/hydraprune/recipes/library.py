"""Recipes by name or file: inheritance, overrides, and errors that name the path."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from hydraprune.core.errors import SpecError
from hydraprune.core.spec import nearest
from hydraprune.recipes.schema import Recipe

_FOLDER = files("hydraprune.recipes") / "files"


def names() -> list[str]:
    """The recipes that come with the package, but for those that others only extend."""
    found = sorted(entry.name.removesuffix(".yaml") for entry in _FOLDER.iterdir() if entry.name.endswith(".yaml"))
    return [name for name in found if not name.startswith("base-")]


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe called `name`, or in the YAML file `name`, with `path.to.key=value` overrides.

    A stage is addressed by its name: `stages.prune.epochs=5`. Values are read as YAML.

    Raises:
        SpecError: if there is no such recipe or key (the nearest is named), or a value does not fit.
    """
    values = _read(name)
    return resolve(values, overrides, str(values.get("name", name)))


def resolve(values: dict[str, Any], overrides: Sequence[str], where: str) -> Recipe:
    """The recipe of these settings with `path.to.key=value` overrides; errors quote paths below `where`."""
    values = copy.deepcopy(values)
    for path, value in parsed(overrides):
        _assign(values, path, value)
    return Recipe.parse(values, where)


def parsed(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """Path and value of each `path.to.key=value`, the value being YAML."""
    found = []
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals:
            raise SpecError(f"--set {override!r}: write path.to.key=value, such as stages.prune.epochs=5")
        try:
            found.append((path, yaml.safe_load(text)))
        except yaml.YAMLError as error:
            raise SpecError(f"--set {override!r}: the value is no YAML ({_line(error)})") from None
    return found


def changed(base: str | Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a recipe, given by name, as a file or as settings, with `path.to.key: value` changes."""
    values = _read(base) if isinstance(base, str) else _extended(copy.deepcopy(dict(base)), "of the study")
    for path, value in changes.items():
        _assign(values, path, value)
    return values


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, defaults included; `load_recipe` reads it back to an equal one."""
    return yaml.safe_dump(recipe.plain(), sort_keys=False, width=120)


def _read(name: str) -> dict[str, Any]:
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        try:
            text = path.read_text()
        except OSError as error:
            raise SpecError(f"cannot read the recipe {name}: {error.strerror}") from None
    else:
        entry = _FOLDER / f"{name}.yaml"
        if not entry.is_file():
            raise SpecError(f"unknown recipe {name!r}; {nearest(name, names())} (or give a file NAME.yaml)")
        text = entry.read_text()
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"recipe {name} is no YAML ({_line(error)})") from None
    if not isinstance(values, dict):
        raise SpecError(f"recipe {name}: expected a mapping of settings, got {values!r}")
    return _extended(values, name)


def _extended(values: dict[str, Any], name: str) -> dict[str, Any]:
    base, changes = values.pop("extends", None), values.pop("set", None) or {}
    if not isinstance(changes, Mapping):
        raise SpecError(f"recipe {name}: `set` takes path.to.key: value, got {changes!r}")
    if base is not None:
        values = {**_read(str(base)), **values}
    for change, value in changes.items():
        _assign(values, change, value)
    return values


def _assign(values: dict[str, Any], path: str, value: Any) -> None:
    """Set one value; the containers on the way must be there."""
    *way, last = path.split(".")
    here: Any = values
    for depth, part in enumerate(way):
        where = ".".join(way[: depth + 1])
        if isinstance(here, list):
            here = _stage(here, part, where)
        else:
            if isinstance(here.get(part), str):
                here[part] = {"kind": here[part]}
            if here.get(part) is None:
                here[part] = {}
            here = here[part]
        if not isinstance(here, Mapping | list):
            raise SpecError(f"{where} is {here!r}, not a group of settings, so {path} cannot be set")
    if isinstance(here, list):
        here[here.index(_stage(here, last, path))] = copy.deepcopy(value)
    else:
        here[last] = copy.deepcopy(value)


def _stage(stages: list[Any], name: str, where: str) -> Any:
    known = {str(s.get("name", s.get("kind"))): s for s in stages if isinstance(s, Mapping)}
    if name not in known:
        raise SpecError(f"{where}: there is no {name!r}; {nearest(name, known)}")
    return known[name]


def _line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}: {getattr(error, 'problem', error)}" if mark else str(error)
