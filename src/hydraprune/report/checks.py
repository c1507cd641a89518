"""What the sanity checks of robustness found: signs of masked gradients and of weak attacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hydraprune.report.chart import Chart, Palette, Panels, Point, Series
from hydraprune.report.experiment import Variant
from hydraprune.report.matrix import Matrix, TableCell, percent, rising, shaded
from hydraprune.runs.contents import Checked
from hydraprune.runs.files import CHECKS
from hydraprune.runs.folder import Network

TOLD = 200
"""Rows of a table of checks, at most."""
ENDS = {True: ("✓ passed", 1.0, "good"), False: ("✗ failed", 0.0, "bad"), None: ("not made", 2.0, "quiet")}


class CheckRow(NamedTuple):
    """A check of one network; it has passed, failed, or could not be made (None)."""

    network: str
    variant: Variant
    check: Checked


def checks(variants: Sequence[Variant]) -> list[CheckRow]:
    """All that lie beside the networks' checkpoints."""
    return [check for variant in variants for network in variant.seeds for check in _read(variant, network)]


def _read(variant: Variant, network: Network) -> list[CheckRow]:
    title = f"{network.run.path.name}: {variant.title}" if len(variant.seeds) > 1 else variant.title
    return [CheckRow(title, variant, check) for check in network.each(Checked, CHECKS)]


def overview(found: Sequence[CheckRow]) -> Matrix | None:
    """How the checks of each network ended; over several seeds, how many of them failed."""
    groups: dict[tuple[str, str], list[Checked]] = {}
    for _, variant, check in found:
        groups.setdefault((variant.title, check.name), []).append(check)
    titles, names = (list(dict.fromkeys(key[place] for key in groups)) for place in (0, 1))

    def cell(row: int, column: int) -> TableCell:
        mine = groups.get((titles[row], names[column]), [])
        failed = [check for check in mine if check.passed is False]
        if failed:
            text = "✗" if len(mine) == 1 else f"✗ {len(failed)} of {len(mine)}"
            return TableCell(text, look="bad", tip=failed[0].found)
        passed = [check for check in mine if check.passed]
        return TableCell("✓", look="good", tip=passed[0].found) if passed else TableCell("–", look="quiet")

    return shaded("", "network", names, titles, cell, "✓ passed, ✗ failed, – not made.") if found else None


def told(found: Sequence[CheckRow]) -> Matrix | None:
    """What the checks say."""
    rows = []
    for network, _, check in found[:TOLD]:
        text, order, look = ENDS[check.passed]
        words = [TableCell(word, look="words") for word in (check.found, check.expected, check.why)]
        rows.append((network, [TableCell(check.name), TableCell(text, order, look), *words]))
    caption = f"The first {TOLD} of {len(found)}." if len(found) > TOLD else ""
    columns = ["check", "result", "found", "expected", "why"]
    return Matrix("", "network", columns, rows, caption) if rows else None


def efforts(found: Sequence[CheckRow], palette: Palette) -> Panels | None:
    """Accuracy against the radius of the attack, its steps and its restarts, a line for each network's first run."""
    first = {(variant.title, check.name): (variant, check) for _, variant, check in reversed(found)}
    charts = []
    for name, key in (("radius", "eps"), ("steps", "steps"), ("restarts", "restarts")):
        every = [(variant, check.figures) for variant, check in reversed(first.values()) if check.name == name]
        curves = [(variant, figures) for variant, figures in every if getattr(figures, key)]
        rates = sorted({round(variant.sparsity, 3) for variant, _ in curves if not variant.dense})
        series = []
        for variant, figures in curves:
            values = zip(getattr(figures, key), figures.accuracy, strict=True)
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
