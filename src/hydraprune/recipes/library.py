"""Recipes by name or file: inheritance, overrides, and errors that name the path."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from hydraprune.core.errors import CheckpointError, SpecError
from hydraprune.core.files import read_yaml
from hydraprune.core.spec import Spec, nearest, said, sentence
from hydraprune.recipes.variables import Variable

if TYPE_CHECKING:
    from hydraprune.recipes.schema import Recipe

_FOLDER = files("hydraprune.recipes") / "files"
WORDS = "words"
"""In the settings of files: values of variables that were chosen, and are not in place yet."""
LEVELS = 16
"""How many recipes may extend one another."""


def names() -> list[str]:
    """The recipes that come with the package, but for those that others only extend."""
    found = sorted(entry.name.removesuffix(".yaml") for entry in _FOLDER.iterdir() if entry.name.endswith(".yaml"))
    return [name for name in found if not name.startswith("base-")]


def about(name: str, folder: Traversable = _FOLDER) -> str:
    """What the recipe, or another file of settings in `folder`, says of itself in one line; it is not validated."""
    return str(yaml.safe_load((folder / f"{name}.yaml").read_text()).get("about", ""))


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe called `name`, or in the YAML file `name`, with `path.to.key=value` overrides.

    A stage is addressed by its name: `stages.prune.epochs=5`; a word of the recipe's stands for some: `sparsity=0.99`.
    Values are read as YAML.

    Raises:
        SpecError: if there is no such recipe or key (the nearest is named), or a value does not fit.
    """
    if not isinstance(name, str):
        raise SpecError(f"a recipe is called by name or file, got {said(name)}")
    values = _read(name)
    return resolve(values, overrides, str(values.get("name", name)))


def read_recipe(path: Path) -> Recipe:
    """The recipe that a run wrote down at `path`: whole, so it extends nothing and makes no other file be read.

    Raises:
        SpecError: if it is none.
    """
    return written(read_settings(path, "recipe"), str(path))


def written(values: dict[str, Any], where: str) -> Recipe:
    """The recipe of settings that a run wrote down.

    Raises:
        SpecError: if it is none, such as one of an earlier version, which knew other settings.
    """
    try:
        return resolve(values, (), where)
    except SpecError as error:
        raise SpecError(
            f"{error}; if an earlier hydraprune wrote it, run the experiment again into a new folder, or load its "
            "networks in Python (hydraprune.load)"
        ) from None


def read_settings(path: Path, noun: str) -> dict[str, Any]:
    """The mapping in a YAML file of a user's.

    Raises:
        SpecError: if there is none; it names the file and shows nothing of what it holds.
    """
    try:
        values = read_yaml(path, f"give a {noun} as YAML")
    except CheckpointError as error:
        raise SpecError(f"{noun} {error}") from None
    if not isinstance(values, dict):
        raise SpecError(f"{noun} {path}: expected a mapping of settings, got a {type(values).__name__}")
    return values


def resolve(values: dict[str, Any], overrides: Sequence[str], where: str) -> Recipe:
    """The recipe of these settings with `path.to.key=value` overrides; errors quote paths below `where`."""
    from hydraprune.recipes.schema import Recipe  # slow to import: a name that does not exist is told before

    return Recipe.parse(changed(values, parsed(overrides)), where)


def parsed(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """Path and value of each `path.to.key=value`, the value being YAML."""
    if (
        isinstance(overrides, str)
        or not isinstance(overrides, Sequence)
        or not all(isinstance(o, str) for o in overrides)
    ):
        raise SpecError(f"overrides are {said(overrides)}; give a list such as ['stages.prune.epochs=5']")
    found = []
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals:
            raise SpecError(f"--set {override!r}: write path.to.key=value, such as stages.prune.epochs=5")
        try:
            found.append((path, yaml.safe_load(text)))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise SpecError(f"--set {override!r}: the value is no YAML ({_line(error)})") from None
    return found


def whole(base: str | Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a recipe, given by name, as a file or as settings, with all that it extends."""
    return _read(base) if isinstance(base, str) else _extended(copy.deepcopy(dict(base)), "of the study")


def changed(base: Mapping[str, Any], changes: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The settings `base` with (path.to.key, value) changes.

    First come words of the recipe's, each once and with its last value, then settings by their path, in order: what is
    set by its path is not taken back by what a word brings.
    """
    values = copy.deepcopy(dict(base))
    words, paths = dict(_mapping(values.pop(WORDS, {}), WORDS)), []
    for path, value in changes:
        if path in _variables(values):
            words[path] = value
        else:
            paths.append((path, value))
    for word, value in words.items():
        for path, what in _variable(values, word).changes(value).items():
            _assign(values, path, what)
    # What a word has brought beside its own setting could not be taken back later.
    values["variables"] = {
        w: v for w, v in _variables(values).items() if w not in words or not _variable(values, w).cases
    }
    for path, value in paths:
        _assign(values, target(values, path), value)
    return values


def target(values: Mapping[str, Any], path: str) -> str:
    """The setting that a path means in these settings of a recipe; it may begin with a word of theirs."""
    first, _, rest = path.partition(".")
    if first not in _variables(values):
        return path
    return ".".join([_variable(values, first).path, *([rest] if rest else [])])


def dump(settings: Spec) -> str:
    """A resolved recipe, or a study, as YAML, defaults included; what reads it back gives an equal one."""
    return yaml.safe_dump(settings.plain(), sort_keys=False, width=120)


def _read(name: str, below: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings of the recipe `name`, which those in `below` extend, each the one before it."""
    if len(below) == LEVELS:
        raise SpecError(f"recipe {below[0]} extends more than {LEVELS} recipes in a row, or itself; extend fewer")
    if Path(name).suffix in {".yaml", ".yml"} or os.path.isfile(name):
        return _extended(read_settings(Path(name), "recipe"), name, below)
    file = f"{name}.yaml"
    if file not in {entry.name for entry in _FOLDER.iterdir()}:
        raise SpecError(f"unknown recipe {name!r}; {nearest(name, names())} (or give a file NAME.yaml)")
    return _extended(yaml.safe_load((_FOLDER / file).read_text()), name, below)


def _extended(values: dict[str, Any], name: str, below: tuple[str, ...] = ()) -> dict[str, Any]:
    base, changes = values.pop("extends", None), values.pop("set", None) or {}
    if not isinstance(changes, Mapping):
        raise SpecError(f"recipe {name}: `set` takes path.to.key: value, got {changes!r}")
    if base is not None:
        inherited = _read(str(base), (*below, name))
        if WORDS in values:
            raise SpecError(f"recipe {name}: no setting or variable {WORDS!r}; choose values of variables under `set`")
        meant = {**_variables(inherited), **_variables(values)}
        kept = {word: variable for word, variable in meant.items() if variable is not None}
        values = {**inherited, **values, "variables": kept}
        if WORDS in values:  # of a variable that is dropped, the value goes too
            values[WORDS] = {word: value for word, value in values[WORDS].items() if word in kept}
    chosen = {str(change): value for change, value in changes.items()}
    words = {word: value for word, value in chosen.items() if word in _variables(values)}
    for path, value in chosen.items():
        if path not in words:
            _assign(values, target(values, path), value)
    earlier = _mapping(values.get(WORDS, {}), WORDS)
    return {**values, WORDS: {**earlier, **words}} if earlier or words else values


def _variables(values: Mapping[str, Any]) -> Mapping[str, Any]:
    return _mapping(values.get("variables") or {}, "variables")


def _mapping(values: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise SpecError(f"{where}: expected a mapping of words, got {said(values)}")
    return values


def _assign(values: dict[str, Any], path: str, value: Any) -> None:
    """Set one value; the containers on the way must be there."""
    from hydraprune.recipes.schema import Recipe

    if (first := path.partition(".")[0]) not in Recipe.model_fields:
        raise SpecError(
            f"no setting or variable {first!r}; {nearest(first, [*Recipe.model_fields, *_variables(values)])}"
        )
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


def _variable(values: Mapping[str, Any], word: str) -> Variable:
    if word not in _variables(values):
        raise SpecError(f"no variable {word!r}; {nearest(word, _variables(values))}")
    try:
        return Variable.model_validate(_variables(values)[word])
    except ValidationError as error:
        raise SpecError(sentence(error, f"variables.{word}")) from None


def _stage(stages: list[Any], name: str, where: str) -> Any:
    known = {str(s.get("name", s.get("kind"))): s for s in stages if isinstance(s, Mapping)}
    if name not in known:
        raise SpecError(f"{where}: there is no {name!r}; {nearest(name, known)}")
    return known[name]


def _line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}: {getattr(error, 'problem', error)}" if mark else str(error)
