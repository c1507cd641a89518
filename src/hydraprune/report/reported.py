"""Figures of others beside ours: what the paper of a recipe reports, and a public benchmark."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from hydraprune.report.experiment import Experiment, Setting
from hydraprune.report.matrix import Cell, Matrix, percent


def compared(setting: Setting) -> Matrix | None:
    """The figures that the recipes report (`source.reported`), ours, and the differences."""
    rows = [row for experiment in setting.experiments for row in _compared(setting, experiment)]
    columns = ["figure", "reported %", "ours %", "difference", "our attack", "source"]
    caption = "Ours minus reported, in points. Reported figures marked * were not compared with the paper itself."
    return Matrix(setting.heading, "experiment", columns, rows, caption) if rows else None


def _compared(setting: Setting, experiment: Experiment) -> list[tuple[str, list[Cell]]]:
    """Reported are `clean` and attacks by name, for the dense network with `dense ` before them."""
    source = experiment.runs[0].recipe.get("source") or {}
    place = ", ".join(str(source[part]) for part in ("paper", "place") if source.get(part))
    rows = []
    for name, value in (source.get("reported") or {}).items():
        if not isinstance(value, int | float):
            continue
        key, ours = _ours(setting, experiment, str(name))
        measured = [Cell("not measured"), Cell("–")]
        if ours is not None:
            mean, difference = 100 * ours["mean"], 100 * ours["mean"] - value
            measured = [
                Cell(percent(ours["mean"], ours["std"]), mean),
                Cell(f"{difference:+.1f}".replace("-", "−"), difference),
            ]
        reported = Cell(f"{value:.1f}" + ("" if source.get("checked") else " *"), float(value))
        rows.append((experiment.name, [Cell(str(name)), reported, *measured, Cell(key), Cell(place, look="words")]))
    return rows


def _ours(setting: Setting, experiment: Experiment, name: str) -> tuple[str, dict[str, Any] | None]:
    """The figure that answers to a reported one; `pgd-50` of a paper is our `pgd-50x10`."""
    dense, attack = name.startswith("dense "), name.removeprefix("dense ")
    mine = [entry for entry in setting.entries if entry.experiment is experiment and entry.dense == dense]
    if len(mine) == 1:
        for key, figure in mine[0].row["figures"].items():
            if key == attack or key.startswith(f"{attack}x"):
                return key, figure
    return "", None


def benchmark() -> tuple[str, list[Matrix]]:
    """The public benchmark of adversarial pruning as packaged: its provenance, and a table for each data set."""
    text = files("hydraprune.report").joinpath("static/leaderboard.json").read_text()
    board: dict[str, Any] = json.loads(text)
    tables = []
    for table in board["tables"]:
        columns = [f"{column['net']}, {column['sparsity']} %" for column in table["columns"]]
        rows = [(method, [_pair(pair) for pair in values]) for method, values in table["rows"].items()]
        title = f"{table['dataset']}, {table['structure']} removed"
        tables.append(Matrix(title, "method", columns, rows, "Robust accuracy, and clean accuracy in brackets (%)."))
    about = f"{board['title']}, {board['source']} at commit {board['commit']} of {board['date']}. {board['protocol']}"
    return about, tables


def _pair(pair: list[float] | None) -> Cell:
    return Cell("–", -1.0) if pair is None else Cell(f"{pair[1]:.1f} ({pair[0]:.1f})", pair[1])
