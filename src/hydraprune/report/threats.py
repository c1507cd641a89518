"""What was measured under other threat models than the recipe's: a table, and accuracy against the radius."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hydraprune.core.threat import ThreatModel
from hydraprune.report.chart import Palette, Panels, Series
from hydraprune.report.charts import by_sparsity, curve, measured_at, security_curves
from hydraprune.report.experiment import NORMS, Setting, Variant, adversary, titled
from hydraprune.report.matrix import Matrix, TableCell
from hydraprune.report.overview import accuracy, fewer
from hydraprune.report.summary import Row, averaged
from hydraprune.runs.files import CURVES

CAPTION = (
    "The attack was run anew at every radius; bars as in the charts against sparsity. Broken lines without marks: the "
    "security curves of the same networks, from one run of a minimum-norm attack."
)


def table(variants: Sequence[Variant]) -> Matrix | None:
    """A row for each network and threat model, of the networks that met several or another than their recipe's."""
    elsewhere = [variant for variant in variants if any(network.others for network in variant.seeds)]
    found = [(variant, threat, row) for variant in elsewhere for threat, row in _rows(variant).items()]
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
    found = {variant: _rows(variant) for variant in setting.variants}
    figures = []
    for norm in dict.fromkeys(threat.norm for rows in found.values() for threat in rows):
        measured = {variant: _by_attack(norm, rows) for variant, rows in found.items()}
        curves = {variant: _curves(variant, norm, palette) for variant, attacks in measured.items() if attacks}
        for name in dict.fromkeys(name for attacks in measured.values() for name in attacks):
            lines = {
                variant: [_line(variant, name, norm, attacks[name], palette), *curves[variant]]
                for variant, attacks in measured.items()
                if name in attacks
            }
            charts = by_sparsity(setting, lines, f"{NORMS[norm]} radius of the attack")
            if charts:
                figures.append(Panels(titled(setting.heading, f"{name} in {NORMS[norm]}"), charts, CAPTION))
    return figures


def _line(variant: Variant, name: str, norm: str, rows: dict[float, Row], palette: Palette) -> Series:
    points = [measured_at(eps, row, name, f" at {adversary({'norm': norm, 'eps': eps})}") for eps, row in rows.items()]
    return Series(variant.label, palette[variant.label], points, dash=2 * variant.dense)


def _own(variant: Variant) -> ThreatModel | None:
    record = variant.seeds[0].record
    return record.threat if record is not None else None


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
        file = CURVES if threat == own else f"{threat.label}/{CURVES}"
        measured = [network for network in variant.seeds if threat == own or threat in network.others]
        seeds = [security_curves(network, file) for network in measured]
        for name in dict.fromkeys(name for curves in seeds for name in curves):
            drawn = curve(variant, [curves.get(name, {}) for curves in seeds], palette)
            dash = 1 + 2 * (len(found) % 2)
            found.setdefault(name, replace(drawn, name=f"{variant.label}, {name}", marks=False, dash=dash))
    return list(found.values())
