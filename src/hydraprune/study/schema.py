"""A study: a grid over the settings of a recipe."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import Field

from hydraprune.core.errors import SpecError
from hydraprune.core.spec import Spec, nearest, said
from hydraprune.recipes import library
from hydraprune.recipes.library import changed, parsed, read_settings, resolve, whole
from hydraprune.recipes.variables import short_name

if TYPE_CHECKING:
    from hydraprune.recipes.schema import Recipe

_FOLDER = files("hydraprune.study") / "files"
SEED = "seed"
"""The axis over which tables average."""
CELLS = 10_000
"""How many a study may have: each is a recipe that is validated before anything runs."""


@dataclass(frozen=True)
class Cell:
    """One combination of a study.

    Attributes:
        labels: axis -> label.
        recipe: what is run.
    """

    labels: dict[str, str]
    recipe: Recipe

    @property
    def name(self) -> str:
        """The folder of its run."""
        return cell_name(self.labels)


class Study(Spec):
    """A recipe in many variants.

    Args:
        name: of the study.
        about: one line.
        recipe: a recipe's name, file, or settings.
        set: path.to.key -> value, changed in every cell.
        grid: axis -> what varies along it: a list of values of the setting that the axis is named after (`seed:
            [0, 1]`), `{path.to.key: [values]}`, or `{label: {path.to.key: value, ...}}`. Tables average over `seed`.
        exclude: cells that are left out: each a choice of labels on some axes.
        include: further cells: a label on every axis, and by `set` what is changed beside; a label that the axis does
            not have is only a name.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")
    about: str = ""
    recipe: str | dict[str, Any]
    set: dict[str, Any] = {}
    grid: dict[str, Any] = Field(min_length=1)
    exclude: list[dict[str, Any]] = []
    include: list[dict[str, Any]] = []

    def cells(self) -> list[Cell]:
        """Every combination, validated.

        Raises:
            SpecError: if an axis cannot be read, a cell is no valid recipe (the message names it), or none is left.
        """
        axes = {axis: _options(axis, values) for axis, values in self.grid.items()}
        if math.prod(map(len, axes.values())) > CELLS:
            raise SpecError(
                f"study {self.name}: its grid has more than {CELLS} cells; vary less, or in several studies"
            )
        base = whole(self.recipe)
        left_out = [_labels(where, "exclude", axes) for where in self.exclude]
        cells: dict[str, Cell] = {}
        for labels in product(*axes.values()):
            chosen = dict(zip(axes, labels, strict=True))
            if not any(gone.items() <= chosen.items() for gone in left_out):
                self._add(cells, chosen, base, {})
        for entry in self.include:
            extra = {**entry}
            changes = extra.pop("set", {})
            if not isinstance(changes, dict):
                raise SpecError(f"include {entry}: `set` takes path.to.key: value")
            chosen = _labels(extra, "include", axes, named=bool(changes))
            if chosen.keys() != axes.keys():
                raise SpecError(f"include {entry}: give a label for each of {', '.join(axes)}")
            self._add(cells, {axis: chosen[axis] for axis in axes}, base, changes)
        if not cells:
            raise SpecError(f"study {self.name}: the grid is empty; exclude less")
        return list(cells.values())

    def _add(self, cells: dict[str, Cell], labels: dict[str, str], base: dict[str, Any], more: dict[str, Any]) -> None:
        name = cell_name(labels)
        if name in cells:
            raise SpecError(f"study {self.name}: cell {name} stands in it twice")
        changes = [*self.set.items(), ("name", f"{self.name}/{name}"), ("about", self.about)]
        for axis, label in labels.items():
            changes += _options(axis, self.grid[axis]).get(label, {}).items()
        recipe = resolve(changed(base, [*changes, *more.items()]), (), f"{self.name}/{name}")
        if recipe.trainer.devices > 1:
            raise SpecError(f"{self.name}/{name}: a cell runs on one device; start the study once on each instead")
        cells[name] = Cell(labels, recipe)


def cell_name(labels: Mapping[str, str]) -> str:
    """The folder of the cell with these labels."""
    return ",".join(f"{axis}={label}" for axis, label in labels.items())


def names() -> list[str]:
    """The studies that come with the package."""
    return sorted(e.name.removesuffix(".yaml") for e in _FOLDER.iterdir() if e.name.endswith(".yaml"))


def about(name: str) -> str:
    """What the study called `name`, of the package, says of itself in one line; it is not validated."""
    return library.about(name, _FOLDER)


def load_study(name: str, overrides: Sequence[str] = (), vary: Sequence[str] = ()) -> Study:
    """The study called `name`, or in the YAML file `name`, its recipe resolved; with `vary`, also one of a recipe.

    Args:
        name: of a study or recipe of the package, or a file of one.
        overrides: `path.to.key=value`, changed in every cell after what the study sets, before what its grid does.
        vary: `AXIS=VALUE,VALUE`, axes beside or in place of those of the study: variables or settings of the recipe.

    Raises:
        SpecError: if there is none, or it has unknown keys.
    """
    loaded = load(name, overrides, vary)
    if not isinstance(loaded, Study):
        raise SpecError(f"{name} is a recipe; use `hydraprune run`, or vary something: --vary sparsity=0.9,0.99")
    return loaded


def load(name: str, overrides: Sequence[str] = (), vary: Sequence[str] = ()) -> Recipe | Study:
    """The study or recipe called `name`, or in the YAML file `name`; a recipe becomes a study by `vary`.

    Raises:
        SpecError: if there is none, or it has unknown keys.
    """
    if Path(name).suffix in {".yaml", ".yml"} or os.path.isfile(name):
        values = read_settings(Path(name), "recipe or study")
    elif name in names():
        values = yaml.safe_load((_FOLDER / f"{name}.yaml").read_text())
    elif name in library.names():
        values = {}
    else:
        known = [*library.names(), *names()]
        raise SpecError(f"unknown recipe or study {name!r}; {nearest(name, known)} (or give a file NAME.yaml)")
    axes = dict(map(_axis, vary))
    if "recipe" not in values:
        if not axes:
            return library.load_recipe(name, overrides)
        values = {"name": str(whole(name).get("name", Path(name).stem)), "recipe": name}
    if axes and not isinstance(values.get("grid") or {}, dict):
        raise SpecError(f"{name}.grid: expected axes by name, got {said(values['grid'])}")
    study = resolved(Study.parse(values | ({"grid": {**(values.get("grid") or {}), **axes}} if axes else {}), name))
    settings = dict(parsed(overrides))
    for path in settings:
        if axis := _varied(study, path):
            raise SpecError(f"--set {path}: the grid of {study.name} varies it; use --vary {axis}={settings[path]}")
    return study.model_copy(update={"set": {k: v for k, v in study.set.items() if k not in settings} | settings})


def _varied(study: Study, path: str) -> str | None:
    """The axis of which every value sets what `path` sets, so that setting it does nothing."""
    base = study.recipe
    assert isinstance(base, dict)
    meant = library.target(base, path)
    for axis, values in study.grid.items():
        options = _options(axis, values).values()
        if all(any(f"{meant}.".startswith(f"{library.target(base, key)}.") for key in option) for option in options):
            return axis
    return None


def _axis(option: str) -> tuple[str, list[Any]]:
    """What `--vary` says: an axis, and its values."""
    axis, equals, text = option.partition("=")
    try:
        values = yaml.safe_load(f"[{text}]")
    except (yaml.YAMLError, ValueError, RecursionError):
        values = None
    if not equals or not isinstance(values, list) or not values:
        raise SpecError(f"--vary {option!r}: write AXIS=VALUE,VALUE, such as sparsity=0.9,0.99")
    return axis, values


def resolved(study: Study) -> Study:
    """The same study with the settings of its recipe in place of a name or file."""
    return study.model_copy(update={"recipe": whole(study.recipe)})


def read_study(path: Path) -> Study:
    """The study that was written down at `path`: resolved, so it makes no other file be read.

    Raises:
        SpecError: if it is none, or its recipe stands elsewhere.
    """
    study = Study.parse(read_settings(path, "study"), str(path))
    if isinstance(study.recipe, str) or "extends" in study.recipe:
        raise SpecError(f"{path}: its recipe stands in another file; give the folder that `hydraprune study` wrote")
    return study


def _options(axis: str, values: Any) -> dict[str, dict[str, Any]]:
    """Label -> changes, along one axis."""
    if not re.fullmatch(r"[\w.-]+", axis):
        raise SpecError(f"grid: an axis called {axis!r} makes no folder name; use letters, digits, `_`, `-` and `.`")
    path = axis
    if isinstance(values, dict) and len(values) == 1:
        (key, inner), *_ = values.items()
        path, values = (key, inner) if isinstance(inner, list) else (path, values)
    if isinstance(values, list):
        pairs = [(short_name(value), {path: value}) for value in values]
    elif isinstance(values, dict) and all(isinstance(changes, dict) for changes in values.values()):
        pairs = [(short_name(label), changes) for label, changes in values.items()]
    else:
        forms = "[values], {path.to.key: [values]} or {label: {path.to.key: value}}"
        raise SpecError(f"grid.{axis}: expected {forms}, got {values!r}")
    if not pairs:
        raise SpecError(f"grid.{axis} is empty; give it a value, or drop it")
    options = dict(pairs)
    if len(options) < len(pairs) or not all(options):
        raise SpecError(f"grid.{axis}: two values have the same label; write {{label: {{path.to.key: value}}}}")
    return options


def _labels(
    chosen: dict[str, Any], noun: str, axes: dict[str, dict[str, dict[str, Any]]], *, named: bool = False
) -> dict[str, str]:
    """Axis -> label, of a choice in the file; with `named`, labels may be new."""
    labels = {axis: short_name(value) for axis, value in chosen.items()}
    for axis, label in labels.items():
        if axis not in axes:
            raise SpecError(f"{noun} {chosen}: there is no axis {axis!r}; {nearest(axis, axes)}")
        if label not in axes[axis] and not named:
            raise SpecError(f"{noun} {chosen}: axis {axis!r} has no {label!r}; {nearest(label, axes[axis])}")
    return labels
