"""What was proved of the networks, and what the sanity checks of their robustness found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from hydraprune.report.experiment import Entry, Spread
from hydraprune.report.folder import Network
from hydraprune.report.matrix import Cell, Matrix, percent, rising, shaded

T = TypeVar("T")
VERDICTS = {True: ("✓ passed", "good"), False: ("✗ failed", "bad"), None: ("not made", "quiet")}


def share(values: Sequence[float]) -> Cell:
    """Their mean and spread as a cell, in percent."""
    spread = Spread.of(values)
    return Cell(percent(spread.mean, spread.std), spread.mean)


def verified(entries: Sequence[Entry]) -> Matrix | None:
    """Verified accuracy, a row for each network and bound."""
    rows = []
    for entry, bound, found in _each(entries, lambda record: record.verified):
        margins = [one.mean_margin for one in found if one.mean_margin is not None]
        cells = [
            Cell(bound),
            Cell(f"{found[0].samples:,}", found[0].samples),
            share([one.clean_accuracy for one in found]),
            share([one.verified_accuracy for one in found]),
            Cell(f"{Spread.of(margins).mean:.3g}", Spread.of(margins).mean) if margins else Cell("–"),
        ]
        rows.append((entry.name, cells))
    columns = ["bound", "images", "clean %", "verified %", "mean least margin"]
    caption = "Verified: the share of images whose class provably cannot change inside the adversary's ball."
    return Matrix("Verified accuracy", "network", columns, rows, caption) if rows else None


def certified(entries: Sequence[Entry]) -> Matrix | None:
    """Certified accuracy by randomized smoothing, a row for each network and setting."""
    every = _each(entries, lambda record: record.certified)
    radii = sorted({radius for _, _, found in every for one in found for radius in one.certified_accuracy})
    rows = []
    for entry, _, found in every:
        first = found[0]
        at = [[one.certified_accuracy[r] for one in found if r in one.certified_accuracy] for r in radii]
        average = Spread.of([one.average_certified_radius for one in found])
        cells = [
            Cell(f"σ {first.sigma:g}, n {first.n:,}, α {first.alpha:g}", first.sigma),
            Cell(f"{first.samples:,}", first.samples),
            *(share(values) if values else Cell("–") for values in at),
            Cell(f"{average.mean:.3f}", average.mean),
            share([one.abstention_rate for one in found]),
        ]
        rows.append((entry.name, cells))
    columns = ["smoothing", "images", *(f"r = {radius:.3g} %" for radius in radii), "mean radius", "abstained %"]
    caption = "The share of images classified correctly with at least that certified ℓ2 radius."
    return Matrix("Certified accuracy", "network", columns, rows, caption) if rows else None


def _each(entries: Sequence[Entry], read: Callable[[Any], dict[str, T]]) -> list[tuple[Entry, str, list[T]]]:
    """(network, name, what each seed found under it) for all that `read` takes from the records."""
    found = []
    for entry in entries:
        records = [read(network.record) for network in entry.seeds]
        for name in dict.fromkeys(name for record in records for name in record):
            found.append((entry, name, [record[name] for record in records if name in record]))
    return found


def checks(entries: Sequence[Entry]) -> tuple[Matrix, Matrix, Matrix | None] | None:
    """The sanity checks: how they ended, everything that they say, and the same of those that failed."""
    every = [(entry, network, check) for entry in entries for network in entry.seeds for check in _checks(network)]
    if not every:
        return None
    names = list(dict.fromkeys(check.name for _, _, check in every))
    tested = [entry for entry in entries if any(other is entry for other, _, _ in every)]

    def cell(row: int, column: int) -> Cell:
        mine = [check for entry, _, check in every if entry is tested[row] and check.name == names[column]]
        failed, passed = ([check for check in mine if check.passed is wanted] for wanted in (False, True))
        tip = (failed or passed or mine or [None])[0]
        of = f" {len(failed)} of {len(mine)}" if len(mine) > 1 else ""
        text, look = (f"✗{of}", "bad") if failed else ("✓", "good") if passed else ("–", "quiet")
        return Cell(text, look=look, tip=tip.found if tip else "")

    ended = shaded("how they ended", "network", [entry.title for entry in tested], names, cell)
    rows = [(f"{network.run.path.name}: {entry.title}", check) for entry, network, check in every]
    bad = [row for row in rows if row[1].passed is False]
    return (
        replace(ended, rows=_turned(ended)),
        _told("everything that the checks say", rows),
        _told("what failed", bad) if bad else None,
    )


@dataclass(frozen=True)
class Check:
    """A sanity check of one network; `passed` is None where it could not be made."""

    name: str
    passed: bool | None
    found: str
    expected: str
    why: str


def _checks(network: Network) -> list[Check]:
    def parse(values: Any) -> list[Check]:
        return [Check(*(value[key] for key in ("name", "passed", "found", "expected", "why"))) for value in values]

    return network.json("checks.json", parse) or []


def _told(title: str, rows: Sequence[tuple[str, Check]]) -> Matrix:
    words = [[Cell(text, look="words") for text in (check.found, check.expected, check.why)] for _, check in rows]
    body = [
        (name, [Cell(check.name), Cell(*VERDICTS[check.passed]), *rest])
        for (name, check), rest in zip(rows, words, strict=True)
    ]
    return Matrix(title, "network", ["check", "result", "found", "expected", "why"], body)


def surface(network: Network) -> Matrix | None:
    """The loss around an image, from the checks: jagged ground or a plain is a sign of masked gradients."""
    return network.json("checks.json", lambda values: _surface(_title(network), values))


def _surface(title: str, values: Any) -> Matrix | None:
    grid = next((figures for value in values if "loss" in (figures := value.get("figures") or {})), None)
    if grid is None:
        return None
    loss, x, y = grid["loss"], grid["x"], grid["y"]
    low, high = min(map(min, loss)), max(map(max, loss))

    def cell(row: int, column: int) -> Cell:
        value = loss[row][column]
        place = f"loss {value:.3g}, {x[column]:+.2f} eps along the attack, {y[row]:+.2f} eps at random"
        return Cell("", value, rising(value - low, high - low), place)

    caption = f"Loss from {low:.3g} to {high:.3g}; rightwards along the attack, downwards in a random direction (eps)."
    return shaded(title, "", [f"{v:+.1f}" for v in x], [f"{v:+.1f}" for v in y], cell, caption)


def _title(network: Network) -> str:
    return f"{network.run.path.name}: {network.name}"
