"""What was measured under other threat models than the recipe's: a table, and accuracy against the radius."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from hydraprune.core.threat import ThreatModel
from hydraprune.report.chart import Palette, Panels, Series
from hydraprune.report.charts import by_sparsity, curve, measured_at, security_curves
from hydraprune.report.experiment import NORMS, Setting, Variant, adversary, titled
from hydraprune.report.matrix import Matrix, TableCell
from hydraprune.report.overview import accuracy, fewer
from hydraprune.report.summary import Row, averaged
from hydraprune.runs.files import CURVES
from hydraprune.runs.folder import Network

CAPTION = (
    "The attack was run anew at every radius; bars as in the charts against sparsity. Broken lines without marks: the "
    "security curves of the same networks, from one run of a minimum-norm attack."
)


def table(variants: Sequence[Variant]) -> Matrix | None:
    """A row for each network and threat model, of the networks that met several or another than their recipe's."""
    found = [
        (variant, threat, row) for variant in variants for threat, row in _rows(variant).items() if _elsewhere(variant)
    ]
    names = list(dict.fromkeys(name for _, _, row in found for name in row.figures))
    names = [name for name in names if not name.startswith("certified ")]
    rows = []
    for variant, threat, row in found:
        where = adversary(threat.plain()) + " (recipe)" * (threat == _own(variant))
        figures = [accuracy(row.figures, name) for name in names]
        rows.append((variant.title, [TableCell(where, threat.eps), *figures, TableCell(str(row.runs), row.runs)]))
    columns = ["threat model", *(f"{name} %" for name in names), "runs"]
    return Matrix("", "network", columns, rows, fewer(rows)) if rows else None


def against_radius(setting: Setting, palette: Palette) -> list[Panels]:
    """A figure for each norm and attack that was run at several radii, with the security curves of that norm."""
    found = {id(variant): _rows(variant) for variant in setting.variants}
    figures = []
    for norm in dict.fromkeys(threat.norm for rows in found.values() for threat in rows):
        measured = {key: _by_attack(norm, rows) for key, rows in found.items()}
        curves = {id(e): _curves(e, norm, palette) for e in setting.variants if measured[id(e)]}
        for name in dict.fromkeys(name for attacks in measured.values() for name in attacks):
            lines = {
                id(variant): [_line(variant, name, norm, measured[id(variant)][name], palette), *curves[id(variant)]]
                for variant in setting.variants
                if name in measured[id(variant)]
            }
            charts = by_sparsity(setting, partial(_lines, lines), f"{NORMS[norm]} radius of the attack")
            if charts:
                figures.append(Panels(titled(setting.heading, f"{name} in {NORMS[norm]}"), charts, CAPTION))
    return figures


def _lines(lines: dict[int, list[Series]], variant: Variant) -> list[Series]:
    return lines.get(id(variant), [])


def _line(variant: Variant, name: str, norm: str, rows: dict[float, Row], palette: Palette) -> Series:
    points = [measured_at(eps, row, name, f" at {adversary({'norm': norm, 'eps': eps})}") for eps, row in rows.items()]
    return Series(variant.label, palette[variant.label], points, dash=2 * variant.dense)


def _own(variant: Variant) -> ThreatModel | None:
    record = variant.seeds[0].record
    return record.threat if record is not None else None


def _elsewhere(variant: Variant) -> bool:
    return any(network.others for network in variant.seeds)


def _rows(variant: Variant) -> dict[ThreatModel, Row]:
    """Threat model -> row of `summary.averaged` over the runs that were measured under it, by norm and radius."""
    own = _own(variant)
    rows = {own: variant.row} if own is not None else {}
    for threat in {threat for network in variant.seeds for threat in network.others}:
        rows[threat] = averaged(
            [network.others[threat] for network in variant.seeds if threat in network.others], variant.label
        )
    order = sorted(rows, key=lambda threat: (own is not None and threat.norm != own.norm, threat.norm, threat.eps))
    return {threat: rows[threat] for threat in order}


def _by_attack(norm: str, rows: dict[ThreatModel, Row]) -> dict[str, dict[float, Row]]:
    """Attack or bound -> radius -> row, for those that were measured at several radii of the norm."""
    found: dict[str, dict[float, Row]] = {}
    for threat, row in rows.items():
        for name in row.figures if threat.norm == norm else ():
            if name != "clean" and not name.startswith("certified "):
                found.setdefault(name, {})[threat.eps] = row
    return {name: radii for name, radii in found.items() if len(radii) > 1}


def _curves(variant: Variant, norm: str, palette: Palette) -> list[Series]:
    """The security curves of a network in a norm, of each attack the one that reaches farthest."""
    own = _own(variant)
    found: dict[str, Series] = {}
    for threat in reversed([threat for threat in _rows(variant) if threat.norm == norm]):
        seeds = [
            (network, security_curves(network, CURVES if threat == own else f"{threat.label}/{CURVES}"))
            for network in variant.seeds
            if threat == own or threat in network.others
        ]
        for name in dict.fromkeys(name for _, curves in seeds for name in curves):
            known = {id(network): curves.get(name, {}) for network, curves in seeds}
            drawn = curve(variant, variant.over_seeds(partial(_known, known)), palette)
            dash = 1 + 2 * (len(found) % 2)
            found.setdefault(name, replace(drawn, name=f"{variant.label}, {name}", marks=False, dash=dash))
    return list(found.values())


def _known(curves: dict[int, dict[float, float]], network: Network) -> dict[float, float]:
    return curves.get(id(network), {})
