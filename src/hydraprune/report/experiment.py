"""Runs that belong together: seeds of one experiment, experiments of one setting."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from hydraprune.report.folder import Network, Run
from hydraprune.report.summary import averaged

# What two runs of one experiment may differ in: the seed, the machine, and what was measured.
FREE = ("name", "about", "seed", "trainer", "source")
SETTING = ("data", "net", "threat", "objective")
PROVED = ("verified ", "certified ")
NORMS = {"linf": "ℓ∞", "l2": "ℓ2"}


@dataclass(frozen=True, eq=False)
class Experiment:
    """Runs of one recipe with different seeds; `heading` is empty if there is only one."""

    name: str
    heading: str
    runs: list[Run]


@dataclass(frozen=True, eq=False)
class Entry:
    """One network of an experiment, over the runs (seeds) that measured it.

    Attributes:
        experiment: the experiment.
        label: its pruner, and what tells it from others of the same pruner and sparsity.
        seeds: the network in each run.
        row: of `summary.averaged`, and its `stage`.
    """

    experiment: Experiment
    label: str
    seeds: list[Network]
    row: dict[str, Any]

    @property
    def sparsity(self) -> float:
        """Of the first run."""
        return float(self.row["sparsity"])

    @property
    def dense(self) -> bool:
        """Whether it was not pruned."""
        return bool(self.row["pruner"] == "dense")

    @property
    def name(self) -> str:
        """Label and sparsity in percent."""
        return self.label if self.dense else f"{self.label} {100 * self.sparsity:.3g} %"

    @property
    def title(self) -> str:
        """The name, after the experiment's if there are several."""
        return titled(self.experiment.heading, self.name)

    def over_seeds(self, read: Callable[[Network], dict[float, float]]) -> dict[float, Spread]:
        """x -> y over the seeds, for the curves that `read` finds, at the x that all of them have."""
        curves = [curve for network in self.seeds if (curve := read(network))]
        shared = [x for x in curves[0] if all(x in curve for curve in curves)] if curves else []
        return {x: Spread.of([curve[x] for curve in curves]) for x in sorted(shared)}


@dataclass(frozen=True)
class Spread:
    """Mean, and sample standard deviation if there are several values."""

    mean: float
    std: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of `values`, at least one."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


@dataclass(frozen=True, eq=False)
class Setting:
    """Experiments on the same data, network, adversary and objective; their networks may be compared.

    `heading` is empty if there is only one.
    """

    name: str
    heading: str
    experiments: list[Experiment]
    entries: list[Entry]

    @property
    def dense(self) -> Entry | None:
        """The network without pruning, of the first experiment that measured it."""
        return next((entry for entry in self.entries if entry.dense), None)

    @property
    def pruned(self) -> list[Entry]:
        """The other networks, by sparsity."""
        return [entry for entry in self.entries if not entry.dense]

    def by_sparsity(self) -> list[list[Entry]]:
        """Pruned networks of about the same sparsity (1 - sparsity within 5 %), together."""
        groups: list[list[Entry]] = []
        for entry in self.pruned:
            left = 1 - entry.sparsity
            if groups and left >= 0.95 * (1 - groups[-1][0].sparsity):
                groups[-1].append(entry)
            else:
                groups.append([entry])
        return groups

    def columns(self) -> list[str]:
        """What was measured: attacks and bounds, and `clean` before them."""
        return list(dict.fromkeys(name for entry in self.entries for name in entry.row["figures"]))

    def attack(self) -> str | None:
        """The strongest of the attacks that most networks met."""
        figures = [entry.row["figures"] for entry in self.entries]
        names = [name for name in self.columns() if name != "clean" and not name.startswith(PROVED)]
        met = {name: [f[name]["mean"] for f in figures if name in f] for name in names}
        most = max((len(values) for values in met.values()), default=0)
        common = {name: statistics.fmean(values) for name, values in met.items() if len(values) == most}
        return min(common, key=common.__getitem__, default=None)


def settings_of(runs: Iterable[Run]) -> list[Setting]:
    """All that can be compared, in the order of `runs`."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.recipe or run.networks:
            groups.setdefault(_text(_identity(run.recipe)), []).append(run)
    recipes = [group[0].recipe for group in groups.values()]
    names = _told_apart(_names(recipes), [_identity(recipe) for recipe in recipes])
    shared = [{key: recipe.get(key) for key in SETTING} for recipe in recipes]
    titles = _told_apart([in_words(recipe) for recipe in recipes], shared)
    places: dict[str, tuple[str, list[Experiment]]] = {}
    for name, title, place, group in zip(names, titles, shared, groups.values(), strict=True):
        places.setdefault(_text(place), (title, []))[1].append(Experiment(name, name if len(groups) > 1 else "", group))
    several = len(places) > 1
    return [Setting(title, title if several else "", found, _entries(found)) for title, found in places.values()]


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


def interval(share: float, samples: int) -> tuple[float, float]:
    """95 % score interval of a share that was measured on `samples` images (Wilson, 1927)."""
    z = 1.96
    middle = (share + z**2 / (2 * samples)) / (1 + z**2 / samples)
    half = z / (1 + z**2 / samples) * math.sqrt(share * (1 - share) / samples + z**2 / (4 * samples**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def _entries(experiments: Sequence[Experiment]) -> list[Entry]:
    found = []
    for experiment in experiments:
        stages: dict[str, list[Network]] = {}
        for network in (network for run in experiment.runs for network in run.networks):
            if network.record is not None:
                stages.setdefault(network.stage, []).append(network)
        for stage, every in stages.items():
            # A run that met other threat models only would leave no attack that all runs met.
            seeds = [network for network in every if network.complete] or every
            row = {"stage": stage, **averaged([network.record for network in seeds if network.record is not None])}
            found.append(Entry(experiment, row["pruner"], seeds, row))
    found.sort(key=lambda entry: entry.sparsity)
    return [
        Entry(entry.experiment, label, entry.seeds, entry.row)
        for entry, label in zip(found, _labels(found), strict=True)
    ]


def _labels(entries: Sequence[Entry]) -> list[str]:
    """The pruner of each network; where several of one sparsity have the same, also what they differ in."""
    groups: dict[tuple[str, float], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.label, round(entry.sparsity, 3)), []).append(entry)
    differing = {key for group in groups.values() if not group[0].dense for key in _differing(group)}
    return [", ".join([e.label, *(v for k, v in _traits(e).items() if k in differing)]) for e in entries]


def _traits(entry: Entry) -> dict[str, str]:
    """What may tell a network from another one of the same pruner and sparsity: its settings, and its stage."""
    if entry.dense:
        return {}
    settings = _flat(_identity(entry.experiment.runs[0].recipe))
    named = {k: v if isinstance(v, str) else f"{k.rpartition('.')[2]} {v}" for k, v in settings.items()}
    return named | {"": entry.row["stage"].rpartition("/")[2]}


def _differing(entries: Sequence[Entry]) -> list[str]:
    traits = [_traits(entry) for entry in entries]
    return [key for key in dict.fromkeys(k for t in traits for k in t) if len({t.get(key) for t in traits}) > 1]


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _identity(recipe: dict[str, Any]) -> dict[str, Any]:
    stages = [s for s in recipe.get("stages") or [] if isinstance(s, dict) and s.get("kind") == "fit"]
    return {key: value for key, value in recipe.items() if key not in FREE} | {"stages": stages}


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
