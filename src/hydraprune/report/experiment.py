"""Runs that may be compared: their networks, each over its seeds, by names that tell them apart."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import reduce
from pathlib import Path
from typing import Any

from hydraprune.core.errors import CheckpointError
from hydraprune.core.results import Record
from hydraprune.report.summary import Row, averaged, columns
from hydraprune.runs.entries import Told
from hydraprune.runs.files import RESULTS
from hydraprune.runs.folder import Network, RunFolder, folders_in, trained

# What two runs of one experiment may differ in: the seed, the machine, and what was measured.
FREE = ("name", "about", "seed", "trainer", "source", "variables")
SETTING = ("data", "net", "threat", "objective")
UNNAMED = ("seed", "sparsity")
"""Axes of a study that name no network: one is averaged over, the other is told beside the name."""
PROVED = ("verified ", "certified ")
NORMS = {"linf": "ℓ∞", "l2": "ℓ2"}


@dataclass(frozen=True, eq=False)
class Experiment:
    """Runs of one recipe with different seeds."""

    name: str
    runs: list[RunFolder]


@dataclass(frozen=True, eq=False)
class Variant:
    """One network of a setting, over the runs (seeds) that measured it.

    Attributes:
        heading: of its setting.
        seeds: the network with each seed, and all that is known of it; one that several runs share stands here once.
        runs: all runs that hold it.
        row: its figures; `pruner` is its label, which with the sparsity tells it from the others.
    """

    heading: str
    seeds: list[Network]
    runs: list[RunFolder]
    row: Row

    @property
    def label(self) -> str:
        """Its pruner, and what tells it from others of the same pruner and sparsity."""
        return self.row.pruner

    @property
    def sparsity(self) -> float:
        """Share of its prunable weights that is gone."""
        return self.row.sparsity

    @property
    def dense(self) -> bool:
        """Whether nothing was removed."""
        return self.row.dense

    @property
    def name(self) -> str:
        """Label and sparsity in percent."""
        return self.row.name

    @property
    def title(self) -> str:
        """The name, after the setting's if there are several."""
        return titled(self.heading, self.name)


@dataclass(frozen=True, eq=False)
class Setting:
    """Experiments on the same data, network, adversary and objective; their networks may be compared.

    `heading` is empty if there is only one.
    """

    name: str
    heading: str
    experiments: list[Experiment]
    variants: list[Variant]

    @property
    def dense(self) -> Variant | None:
        """The first network without pruning."""
        return next((variant for variant in self.variants if variant.dense), None)

    @property
    def pruned(self) -> list[Variant]:
        """The other networks, by sparsity."""
        return [variant for variant in self.variants if not variant.dense]

    def by_sparsity(self) -> list[list[Variant]]:
        """Pruned networks of about the same sparsity (1 - sparsity within 5 %), together."""
        groups: list[list[Variant]] = []
        for variant in self.pruned:
            left = 1 - variant.sparsity
            if groups and left >= 0.95 * (1 - groups[-1][0].sparsity):
                groups[-1].append(variant)
            else:
                groups.append([variant])
        return groups

    def columns(self) -> list[str]:
        """What was measured: attacks and bounds, and `clean` before them."""
        return columns(variant.row for variant in self.variants)

    def attack(self) -> str | None:
        """The strongest of the attacks that most networks met."""
        figures = [variant.row.figures for variant in self.variants]
        names = [name for name in self.columns() if name != "clean" and not name.startswith(PROVED)]
        met = {name: [f[name].mean for f in figures if name in f] for name in names}
        most = max((len(values) for values in met.values()), default=0)
        common = {name: sum(values) / most for name, values in met.items() if len(values) == most}
        return min(common, key=common.__getitem__, default=None)


def rows(paths: Sequence[Path], told: Told | None = None) -> list[Row]:
    """One row per network: means and standard deviations over the runs (seeds) that hold it.

    What commands measured later under the threat model of the recipe counts too (`hydraprune evaluate`, `verify`,
    `certify`); what was measured of other weights than the checkpoint's does not.

    Args:
        paths: run folders, or folders of run folders such as a study, of which those without results do not count.
        told: gets a line about each measurement that is left out.

    Raises:
        CheckpointError: if nothing was measured in a run, or, unless there is `told`, a file is damaged.
    """
    runs = [RunFolder(folder, strict=told is None) for path in paths for folder in folders_in(path) or [path]]
    settings = settings_of(runs)
    for run in runs:
        if run.path in paths and not run.problems and all(network.known is None for network in run.networks):
            raise CheckpointError(f"{run.path / RESULTS} is missing")
        run.pass_on(told)
    measured = [v for setting in settings for v in setting.variants if v.seeds[0].record is not None]
    return [replace(variant.row, pruner=titled(variant.heading, variant.label)) for variant in measured]


def settings_of(runs: Iterable[RunFolder]) -> list[Setting]:
    """All that can be compared, in the order of `runs`."""
    groups: dict[str, list[RunFolder]] = {}
    for run in runs:
        if run.recipe or run.networks:
            groups.setdefault(_text(_identity(run.recipe)), []).append(run)
    recipes = [group[0].recipe for group in groups.values()]
    names = _told_apart(_names(recipes), [_identity(recipe) for recipe in recipes])
    shared = [{key: recipe.get(key) for key in SETTING} for recipe in recipes]
    titles = _told_apart([in_words(recipe) for recipe in recipes], shared)
    places: dict[str, tuple[str, list[Experiment]]] = {}
    for name, title, place, group in zip(names, titles, shared, groups.values(), strict=True):
        places.setdefault(_text(place), (title, []))[1].append(Experiment(name, group))
    several = len(places) > 1
    return [
        Setting(title, heading, found, _variants(heading, [run for one in found for run in one.runs]))
        for title, found in places.values()
        for heading in [title if several else ""]
    ]


def titled(heading: str, text: str) -> str:
    """`text`, after a heading if there is one."""
    return f"{heading}: {text}" if heading else text


def _names(recipes: Sequence[dict[str, Any]]) -> list[str]:
    """Of the experiments: a cell of a study also has its seed in its name, and the study."""
    names = [re.sub(r",?\bseed=[^,]*", "", str(recipe.get("name", "unnamed"))) for recipe in recipes]
    return [name.partition("/")[2] for name in names] if study_of(recipes) else names


def study_of(recipes: Sequence[dict[str, Any]]) -> str:
    """The name of the study that all `recipes` belong to; empty if there is none."""
    found = {str(recipe.get("name")).rpartition("/")[0] for recipe in recipes}
    return found.pop() if len(found) == 1 and len(recipes) > 1 else ""


def in_words(recipe: dict[str, Any]) -> str:
    """Network, data, adversary and objective of a recipe in one line."""
    kinds = [_kind(recipe.get(key)) for key in ("net", "data", "objective")]
    return " · ".join(part for part in [*kinds, adversary(recipe.get("threat"))] if part)


def adversary(threat: Any) -> str:
    """Norm and radius, which is written as people do: 8/255, but 0.2."""
    if not isinstance(threat, dict):
        return ""
    eps = threat.get("eps")
    if isinstance(eps, int | float) and eps < 1e6:
        pixels, short = Fraction(eps * 255).limit_denominator(1), abs(round(eps, 3) - eps) < 1e-9
        eps = f"{pixels}/255" if not short and abs(pixels / 255 - eps) < 1e-9 else f"{eps:.4g}"
    return f"{NORMS.get(str(threat.get('norm')), threat.get('norm'))} {eps}"


def up_to(recipe: dict[str, Any], stage: str) -> dict[str, Any]:
    """All settings that the network of a stage depends on, but for the seed: those of later stages are left out."""
    made = trained(recipe)
    ends = [number for number, one in enumerate(made, start=1) if one.get("name") == stage]
    return _identity(recipe) | {"stages": made[: ends[0]] if ends else made, "": stage}


def kind_of(recipe: dict[str, Any], stage: str) -> str:
    """What networks of a stage have in common that differ in their seed only."""
    return _text(up_to(recipe, stage))


def _variants(heading: str, runs: Iterable[RunFolder]) -> list[Variant]:
    """The measured networks of a setting, by sparsity."""
    groups: dict[str, list[Network]] = {}
    for network in (network for run in runs for network in run.networks):
        if network.known is not None:
            groups.setdefault(kind_of(network.run.recipe, network.stage), []).append(network)
    found = sorted(groups.values(), key=lambda networks: networks[0].sparsity)
    variants = []
    for networks, label in zip(found, _labels(found), strict=True):
        # A run that met other threat models only would leave no attack that all runs met.
        seeds = _once([network for network in networks if network.record is not None] or networks)
        row = averaged([network.known for network in seeds if network.known is not None], label)
        variants.append(Variant(heading, seeds, [network.run for network in networks], row))
    return variants


def _once(networks: Sequence[Network]) -> list[Network]:
    """Each network once, with what is known of it in all of the runs that share it."""
    groups: dict[object, list[Network]] = {}
    for network in networks:
        groups.setdefault(network.digest or network, []).append(network)
    merged = []
    for first, *more in groups.values():
        records = [network.record for network in (first, *more) if network.record is not None]
        others = reduce(lambda found, other: other.others | found, more, first.others)
        merged.append(replace(first, record=reduce(Record.joined, records) if records else None, others=others))
    return merged


def _labels(groups: Sequence[list[Network]]) -> list[str]:
    """What networks are called: by their cells' labels in a study, or else by their pruner.

    Where several of one sparsity are called the same, also what they differ in.
    """
    cells = [run.labels for networks in groups for run in (network.run for network in networks)]
    first = cells[0] if cells else {}
    axes = [axis for axis in first if axis not in UNNAMED and len({cell.get(axis) for cell in cells}) > 1]
    several = len({networks[0].pruner for networks in groups} - {"dense"}) > 1
    names = []
    for networks in groups:
        agreed = set.intersection(*({*network.run.labels.items()} for network in networks))
        shown = [label for axis, label in networks[0].run.labels.items() if axis in axes and (axis, label) in agreed]
        pruner = networks[0].pruner
        names.append(", ".join(shown if shown and several and pruner != "dense" else [pruner, *shown]))
    alike: dict[tuple[str, float], list[list[Network]]] = {}
    for name, networks in zip(names, groups, strict=True):
        alike.setdefault((name, round(networks[0].sparsity, 3)), []).append(networks)
    differing = {key for (name, _), same in alike.items() if name != "dense" for key in _differing(same)}
    return [
        ", ".join([name, *(v for k, v in _traits(networks[0]).items() if k in differing)])
        for name, networks in zip(names, groups, strict=True)
    ]


def _traits(network: Network) -> dict[str, str]:
    """What may tell a network from another one of the same pruner and sparsity: its settings, and its stage."""
    if network.pruner == "dense":
        return {}
    settings = _flat(up_to(network.run.recipe, network.stage))
    named = {k: v if isinstance(v, str) else f"{k.rpartition('.')[2]} {v}" for k, v in settings.items()}
    return named | {"": network.stage.rpartition("/")[2]}


def _differing(networks: Sequence[list[Network]]) -> list[str]:
    traits = [_traits(same[0]) for same in networks]
    return [key for key in dict.fromkeys(k for t in traits for k in t) if len({t.get(key) for t in traits}) > 1]


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _identity(recipe: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in recipe.items() if key not in FREE} | {"stages": trained(recipe)}


def _kind(value: Any) -> str:
    return str(value.get("kind", "")) if isinstance(value, dict) else str(value or "")


def _told_apart(names: list[str], settings: list[dict[str, Any]]) -> list[str]:
    """`names`; those that stand for different settings are followed by the values that differ."""
    result = []
    for name, mine in zip(names, settings, strict=True):
        rivals = [_flat(other) for title, other in zip(names, settings, strict=True) if title == name]
        different = [f"{key} {v}" for key, v in _flat(mine).items() if any(r.get(key) != v for r in rivals)]
        result.append(f"{name} ({', '.join(different)})" if different else name)
    return result


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, part in items for k, v in _flat(part, f"{path}.{key}" if path else str(key)).items()}
    return {path: value}
