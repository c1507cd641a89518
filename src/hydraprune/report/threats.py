"""What was measured under other threat models than the recipe's: a table, and accuracy against the radius."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from hydraprune.core.threat import ThreatModel
from hydraprune.report.charts import CURVES, Figure, Palette, by_sparsity, curve, measured_at, security_curves
from hydraprune.report.experiment import NORMS, Entry, Setting, adversary, titled
from hydraprune.report.folder import Network
from hydraprune.report.matrix import Cell, Matrix
from hydraprune.report.overview import accuracy, fewer
from hydraprune.report.plot import Series
from hydraprune.report.summary import averaged

CAPTION = (
    "The attack was run anew at every radius; bars as in the charts against sparsity. Broken lines without marks: the "
    "security curves of the same networks, from one run of a minimum-norm attack."
)


def table(entries: Sequence[Entry]) -> Matrix | None:
    """A row for each network and threat model, of the networks that met several or another than their recipe's."""
    found = [(entry, threat, row) for entry in entries for threat, row in _rows(entry).items() if _elsewhere(entry)]
    names = list(dict.fromkeys(name for _, _, row in found for name in row["figures"]))
    names = [name for name in names if not name.startswith("certified ")]
    rows = []
    for entry, threat, row in found:
        where = adversary(threat.plain()) + " (recipe)" * (threat == _own(entry))
        figures = [accuracy(row["figures"], name) for name in names]
        rows.append((entry.title, [Cell(where, threat.eps), *figures, Cell(str(row["runs"]), row["runs"])]))
    columns = ["threat model", *(f"{name} %" for name in names), "runs"]
    return Matrix("", "network", columns, rows, fewer(rows)) if rows else None


def against_radius(setting: Setting, palette: Palette) -> list[Figure]:
    """A figure for each norm and attack that was run at several radii, with the security curves of that norm."""
    found = {id(entry): _rows(entry) for entry in setting.entries}
    figures = []
    for norm in dict.fromkeys(threat.norm for rows in found.values() for threat in rows):
        measured = {key: _by_attack(norm, rows) for key, rows in found.items()}
        curves = {id(e): _curves(e, norm, palette) for e in setting.entries if measured[id(e)]}
        for name in dict.fromkeys(name for attacks in measured.values() for name in attacks):
            lines = {
                id(entry): [_line(entry, name, norm, measured[id(entry)][name], palette), *curves[id(entry)]]
                for entry in setting.entries
                if name in measured[id(entry)]
            }
            plots = by_sparsity(setting, partial(_lines, lines), f"{NORMS[norm]} radius of the attack")
            if plots:
                figures.append(Figure(titled(setting.heading, f"{name} in {NORMS[norm]}"), plots, CAPTION))
    return figures


def _lines(lines: dict[int, list[Series]], entry: Entry) -> list[Series]:
    return lines.get(id(entry), [])


def _line(entry: Entry, name: str, norm: str, figures: dict[float, dict[str, Any]], palette: Palette) -> Series:
    points = [
        measured_at(eps, f"{entry.name}, {name} at {adversary({'norm': norm, 'eps': eps})}", figure)
        for eps, figure in figures.items()
    ]
    return Series(entry.label, palette[entry.label], points, dash=2 * entry.dense)


def _own(entry: Entry) -> ThreatModel | None:
    record = entry.seeds[0].record
    return record.threat if record is not None else None


def _elsewhere(entry: Entry) -> bool:
    return any(network.others for network in entry.seeds)


def _rows(entry: Entry) -> dict[ThreatModel, dict[str, Any]]:
    """Threat model -> row of `summary.averaged` over the runs that were measured under it, by norm and radius."""
    own = _own(entry)
    rows = {own: entry.row} if own is not None else {}
    for threat in {threat for network in entry.seeds for threat in network.others}:
        rows[threat] = averaged([network.others[threat] for network in entry.seeds if threat in network.others])
    order = sorted(rows, key=lambda threat: (own is not None and threat.norm != own.norm, threat.norm, threat.eps))
    return {threat: rows[threat] for threat in order}


def _by_attack(norm: str, rows: dict[ThreatModel, dict[str, Any]]) -> dict[str, dict[float, dict[str, Any]]]:
    """Attack or bound -> radius -> figure, for those that were measured at several radii of the norm."""
    found: dict[str, dict[float, dict[str, Any]]] = {}
    for threat, row in rows.items():
        for name, figure in row["figures"].items() if threat.norm == norm else ():
            if name != "clean" and not name.startswith("certified "):
                found.setdefault(name, {})[threat.eps] = figure
    return {name: figures for name, figures in found.items() if len(figures) > 1}


def _curves(entry: Entry, norm: str, palette: Palette) -> list[Series]:
    """The security curves of a network in a norm, of each attack the one that reaches farthest."""
    own = _own(entry)
    found: dict[str, Series] = {}
    for threat in reversed([threat for threat in _rows(entry) if threat.norm == norm]):
        seeds = [
            (network, security_curves(network, CURVES if threat == own else f"{threat.label}/{CURVES}"))
            for network in entry.seeds
            if threat == own or threat in network.others
        ]
        for name in dict.fromkeys(name for _, curves in seeds for name in curves):
            known = {id(network): curves.get(name, {}) for network, curves in seeds}
            drawn = curve(entry, entry.over_seeds(partial(_known, known)), palette)
            dash = 1 + 2 * (len(found) % 2)
            found.setdefault(name, replace(drawn, name=f"{entry.label}, {name}", marks=False, dash=dash))
    return list(found.values())


def _known(curves: dict[int, dict[float, float]], network: Network) -> dict[float, float]:
    return curves.get(id(network), {})
