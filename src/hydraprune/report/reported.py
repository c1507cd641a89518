"""Figures of others beside ours: what the paper of a recipe reports, and a public benchmark."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any, cast

from hydraprune.report.experiment import Experiment, Setting
from hydraprune.report.matrix import Matrix, TableCell
from hydraprune.report.spread import Accuracy

NETS = {"ResNet-18": "R18", "VGG-16": "V16"}


def compared(setting: Setting) -> Matrix | None:
    """The figures that the recipes report (`source.reported`), ours, and the differences."""
    rows = [row for experiment in setting.experiments for row in _compared(setting, experiment)]
    columns = ["figure", "reported %", "ours %", "difference", "our attack", "source"]
    caption = "Ours minus reported, in points."
    return Matrix(setting.heading, "experiment", columns, rows, caption) if rows else None


def _compared(setting: Setting, experiment: Experiment) -> list[tuple[str, list[TableCell]]]:
    """Reported are `clean` and attacks by name, for the dense network with `dense ` before them."""
    source = experiment.runs[0].recipe.get("source") or {}
    place = ", ".join(str(source[part]) for part in ("paper", "place") if source.get(part))
    rows = []
    for name, value in (source.get("reported") or {}).items():
        if not isinstance(value, int | float):
            continue
        key, ours = _ours(setting, experiment, str(name))
        measured = [TableCell("not measured"), TableCell("–")]
        if ours is not None:
            difference = 100 * ours.mean - value
            measured = [
                TableCell(ours.percent, 100 * ours.mean),
                TableCell(f"{difference:+.1f}".replace("-", "−"), difference),
            ]
        reported = TableCell(f"{value:.1f}", float(value))
        rows.append(
            (
                experiment.name,
                [TableCell(str(name)), reported, *measured, TableCell(key), TableCell(place, look="words")],
            )
        )
    return rows


def _ours(setting: Setting, experiment: Experiment, name: str) -> tuple[str, Accuracy | None]:
    """The figure that answers to a reported one; `pgd-50` of a paper is our `pgd-50x10`."""
    dense, attack = name.startswith("dense "), name.removeprefix("dense ")
    mine = [v for v in setting.variants if v.dense == dense and any(run in experiment.runs for run in v.runs)]
    if len(mine) == 1:
        for key, figure in mine[0].row.figures.items():
            if key == attack or key.startswith(f"{attack}x"):
                return key, figure
    return "", None


def _board() -> dict[str, Any]:
    board: dict[str, Any] = json.loads(files("hydraprune.report").joinpath("static/leaderboard.json").read_text())
    return board


def published(claim: str) -> list[float] | None:
    """Clean and robust accuracy in percent that the public benchmark lists for a claim of its own spelling.

    Methods are compared by the word before the first underscore: `HYDRA_Sehwag2020Hydra_R18_CIFAR10_US_90`.
    """
    method, *where = claim.rsplit("_", 4)
    for table in _board()["tables"]:
        structure = "US" if table["structure"] == "weights" else "S"
        for name, values in table["rows"].items():
            for column, found in zip(table["columns"], values, strict=True):
                data, net = table["dataset"].replace("-", ""), NETS[column["net"]]
                if where == [net, data, structure, str(column["sparsity"])] and _same(method, name):
                    return cast(list[float] | None, found)
    return None


def _same(method: str, name: str) -> bool:
    return method.partition("_")[0].casefold() == name.casefold()


def benchmark() -> tuple[str, list[Matrix]]:
    """The public benchmark of adversarial pruning as packaged: its provenance, and a table for each data set."""
    board, tables = _board(), []
    for table in board["tables"]:
        columns = [f"{column['net']}, {column['sparsity']} %" for column in table["columns"]]
        rows = [(method, [pair(value) for value in values]) for method, values in table["rows"].items()]
        title = f"{table['dataset']}, {table['structure']} removed"
        tables.append(Matrix(title, "method", columns, rows, "Robust accuracy, and clean accuracy in brackets (%)."))
    about = f"{board['title']}, {board['source']} at commit {board['commit']} of {board['date']}. {board['protocol']}"
    return about, tables


def pair(value: list[float] | None) -> TableCell:
    """Clean and robust accuracy in percent, by the latter."""
    return TableCell("–", -1.0) if value is None else TableCell(f"{value[1]:.1f} ({value[0]:.1f})", value[1])
