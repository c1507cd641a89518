"""What the sanity checks of robustness found: signs of masked gradients and of weak attacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hydraprune.report.chart import Chart, Palette, Panels, Point, Series
from hydraprune.report.experiment import Variant
from hydraprune.report.matrix import Matrix, TableCell, percent, rising, shaded
from hydraprune.runs.contents import Checked, Effort
from hydraprune.runs.files import CHECKS
from hydraprune.runs.folder import Network

TOLD = 200
"""Rows of a table of checks, at most."""
ENDS = {True: ("✓ passed", 1.0, "good"), False: ("✗ failed", 0.0, "bad"), None: ("not made", 2.0, "quiet")}


class CheckRow(NamedTuple):
    """A check of one network; `passed` is None where it could not be made."""

    network: str
    variant: Variant
    name: str
    passed: bool | None
    found: str
    expected: str
    why: str
    figures: Effort


def checks(variants: Sequence[Variant]) -> list[CheckRow]:
    """All that lie beside the networks' checkpoints."""
    return [check for variant in variants for network in variant.seeds for check in _read(variant, network)]


def _read(variant: Variant, network: Network) -> list[CheckRow]:
    title = f"{network.run.path.name}: {variant.title}" if len(variant.seeds) > 1 else variant.title
    found = network.each(Checked, CHECKS)
    return [CheckRow(title, variant, c.name, c.passed, c.found, c.expected, c.why, c.figures) for c in found]


def overview(found: Sequence[CheckRow]) -> Matrix | None:
    """How the checks of each network ended; over several seeds, how many of them failed."""
    names = list(dict.fromkeys(check.name for check in found))
    titles = list(dict.fromkeys(check.variant.title for check in found))
    groups: dict[tuple[str, str], list[CheckRow]] = {}
    for check in found:
        groups.setdefault((check.variant.title, check.name), []).append(check)

    def cell(row: int, column: int) -> TableCell:
        mine = groups.get((titles[row], names[column]), [])
        failed = [check for check in mine if check.passed is False]
        if failed:
            return TableCell(
                "✗" if len(mine) == 1 else f"✗ {len(failed)} of {len(mine)}", look="bad", tip=failed[0].found
            )
        passed = [check for check in mine if check.passed]
        return TableCell("✓", look="good", tip=passed[0].found) if passed else TableCell("–", look="quiet")

    return shaded("", "network", names, titles, cell, "✓ passed, ✗ failed, – not made.") if found else None


def told(found: Sequence[CheckRow]) -> Matrix | None:
    """What the checks say."""
    rows = []
    for check in found[:TOLD]:
        text, order, look = ENDS[check.passed]
        words = [TableCell(word, look="words") for word in (check.found, check.expected, check.why)]
        rows.append((check.network, [TableCell(check.name), TableCell(text, order, look), *words]))
    caption = f"The first {TOLD} of {len(found)}." if len(found) > TOLD else ""
    columns = ["check", "result", "found", "expected", "why"]
    return Matrix("", "network", columns, rows, caption) if rows else None


def efforts(found: Sequence[CheckRow], palette: Palette) -> Panels | None:
    """Accuracy against the radius of the attack, its steps and its restarts, a line for each network's first run."""
    first = {(check.variant.title, check.name): check for check in reversed(found)}
    charts = []
    for name, key in (("radius", "eps"), ("steps", "steps"), ("restarts", "restarts")):
        curves = [
            check for (_, other), check in reversed(first.items()) if other == name and getattr(check.figures, key)
        ]
        rates = sorted({round(check.variant.sparsity, 3) for check in curves if not check.variant.dense})
        series = []
        for check in curves:
            variant, values = check.variant, zip(getattr(check.figures, key), check.figures.accuracy, strict=True)
            points = [Point(x, 100 * y, f"{variant.title}: {percent(y)} % with {name} {x:.4g}") for x, y in values]
            dash = 0 if variant.dense else rates.index(round(variant.sparsity, 3)) % 4
            series.append(Series(variant.title, palette[variant.label], points, marks=len(points) < 12, dash=dash))
        if series:
            charts.append(Chart(series, name, "accuracy (%)", name, y_range=(0, None)))
    return Panels("Accuracy against the effort of the attack", charts) if charts else None


def surface(variant: Variant) -> Matrix | None:
    """The loss around the images, from the checks of the first run."""
    grid = next((check.figures for check in variant.seeds[0].each(Checked, CHECKS) if check.figures.loss), None)
    if grid is None:
        return None
    loss, x, y = grid.loss, grid.x, grid.y
    low, high = min(map(min, loss)), max(map(max, loss))

    def cell(row: int, column: int) -> TableCell:
        value = loss[row][column]
        return TableCell("", value, f"spot {rising(value - low, high - low)}", f"{value:.3g}")

    caption = f"Loss {low:.3g} to {high:.3g}, from {x[0]:g} to {x[-1]:g}".replace("-", "−")
    return shaded(variant.title, "", [""] * len(x), [""] * len(y), cell, caption)
