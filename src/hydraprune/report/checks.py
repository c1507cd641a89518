"""What the sanity checks of robustness found: signs of masked gradients and of weak attacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydraprune.report.experiment import Entry
from hydraprune.report.folder import Network
from hydraprune.report.matrix import Cell, Matrix, rising, shaded

ENDS = {True: ("✓ passed", 1.0, "good"), False: ("✗ failed", 0.0, "bad"), None: ("not made", 2.0, "quiet")}


@dataclass(frozen=True)
class Check:
    """A check of one network; `passed` is None where it could not be made."""

    network: str
    entry: Entry
    name: str
    passed: bool | None
    found: str
    expected: str
    why: str


def checks(entries: Sequence[Entry]) -> list[Check]:
    """All that lie beside the networks' checkpoints."""
    return [check for entry in entries for network in entry.seeds for check in _read(entry, network)]


def _read(entry: Entry, network: Network) -> list[Check]:
    def parse(values: Any) -> list[Check]:
        words = ("name", "passed", "found", "expected", "why")
        return [Check(title, entry, *(value[word] for word in words)) for value in values]

    title = f"{network.run.path.name}: {entry.title}" if len(entry.seeds) > 1 else entry.title
    return network.json("checks.json", parse) or []


def overview(found: Sequence[Check]) -> Matrix | None:
    """How the checks of each network ended; over several seeds, how many of them failed."""
    names = list(dict.fromkeys(check.name for check in found))
    titles = list(dict.fromkeys(check.entry.title for check in found))

    def cell(row: int, column: int) -> Cell:
        mine = [check for check in found if check.entry.title == titles[row] and check.name == names[column]]
        failed = [check for check in mine if check.passed is False]
        if failed:
            return Cell("✗" if len(mine) == 1 else f"✗ {len(failed)} of {len(mine)}", look="bad", tip=failed[0].found)
        passed = [check for check in mine if check.passed]
        return Cell("✓", look="good", tip=passed[0].found) if passed else Cell("–", look="quiet")

    return shaded("", "network", names, titles, cell, "✓ passed, ✗ failed, – not made.") if found else None


def told(found: Sequence[Check]) -> Matrix | None:
    """All that the checks say."""
    rows = []
    for check in found:
        text, order, look = ENDS[check.passed]
        words = [Cell(word, look="words") for word in (check.found, check.expected, check.why)]
        rows.append((check.network, [Cell(check.name), Cell(text, order, look), *words]))
    return Matrix("", "network", ["check", "result", "found", "expected", "why"], rows) if rows else None


def surface(entry: Entry) -> Matrix | None:
    """The loss around an image, from the checks of the first run."""
    return entry.seeds[0].json("checks.json", lambda values: _surface(entry.title, values))


def _surface(title: str, values: Any) -> Matrix | None:
    grid = next((figures for value in values if "loss" in (figures := value.get("figures") or {})), None)
    if grid is None:
        return None
    loss, x, y = grid["loss"], grid["x"], grid["y"]
    low, high = min(map(min, loss)), max(map(max, loss))

    def cell(row: int, column: int) -> Cell:
        value = loss[row][column]
        place = f"loss {value:.3g}, {x[column]:+.2f} eps along the attack, {y[row]:+.2f} eps at random"
        return Cell("", value, f"spot {rising(value - low, high - low)}", place)

    caption = f"Loss {low:.3g} to {high:.3g}, from {x[0]:g} to {x[-1]:g}".replace("-", "−")
    return shaded(title, "", [""] * len(x), [""] * len(y), cell, caption)
