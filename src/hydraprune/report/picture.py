"""Results of one or several runs as a picture."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydraprune.core.extras import extra
from hydraprune.core.files import write_atomically
from hydraprune.report.summary import columns

COLORS = {"hydra": "#0072b2", "magnitude": "#d55e00", "random": "#7f7f7f"}
SPARE = ["#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"]
MARKS = "osD^vP*X"
SHADES = ["#9ecae1", "#3182bd", "#08306b", "#e69f00", "#d55e00", "#7f2704"]
"""Of sparsities, from the lowest on."""


def draw(table: Sequence[dict[str, Any]], path: Path, title: str = "") -> None:
    """A PNG of accuracy and sparsity: panels for the first two attacks or certificates and for clean accuracy.

    Up to eight pruners are lines over sparsity, spaced by compression, total / kept. More are rows with a dot for each
    sparsity, the best by their first figure on top. Bars are standard deviations over runs.

    Raises:
        MissingError: without matplotlib.
    """
    with extra("report", "the picture"):
        import matplotlib as mpl
        from matplotlib.figure import Figure

    panels = [*[name for name in columns(table) if name != "clean"][:2], "clean"]
    methods = list(dict.fromkeys(row["pruner"] for row in table if row["pruner"] != "dense"))
    many = len(methods) > len(MARKS)
    if many:
        methods.sort(key=lambda method: _mean(table, method, panels[0]))
    size = (4.6 * len(panels), 1.2 + 0.24 * len(methods) if many else 3.8)
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=size, layout="constrained")
        for axes, name in zip(figure.subplots(1, len(panels), sharey=many, squeeze=False)[0], panels, strict=True):
            shown = [row for row in table if name in row["figures"]]
            proven = name == "clean" or name.startswith(("verified ", "certified "))
            what = textwrap.fill(f"{name if proven else name + ' robust'} accuracy (%)", 36)
            (_dots if many else _lines)(axes, shown, methods, name, what)
            if name == panels[0]:
                figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
        if title:
            figure.suptitle(title)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=130)
    write_atomically(path, picture.getvalue())


def _lines(axes: Any, table: Sequence[dict[str, Any]], methods: list[str], name: str, what: str) -> None:
    spare = iter(SPARE * len(methods))
    ticks: dict[str, float] = {}
    for method, mark in zip(methods, MARKS, strict=False):
        color = COLORS.get(method) or next(spare)
        mine = sorted((row for row in table if row["pruner"] == method), key=lambda row: row["sparsity"])
        ratio = [row["total"] / max(row["kept"], 1) for row in mine]
        ticks |= {_sparsity(row): x for x, row in zip(ratio, mine, strict=True)}
        axes.errorbar(ratio, *_figures(mine, name), label=method, color=color, marker=mark, capsize=3, lw=1.8)
    for value in _figures([row for row in table if row["pruner"] == "dense"], name)[0]:
        axes.axhline(value, color="black", ls=":", lw=1.2, label="dense")
    if ticks:
        axes.set_xscale("log")
        axes.set_xticks(list(ticks.values()), list(ticks))
        axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("sparsity (%)")
    axes.set_ylabel(what)
    axes.grid(axis="y", color="#dddddd", lw=0.7)


def _dots(axes: Any, table: Sequence[dict[str, Any]], methods: list[str], name: str, what: str) -> None:
    pruned = sorted((row for row in table if row["pruner"] in methods), key=lambda row: row["sparsity"])
    sparsities = list(dict.fromkeys(_sparsity(row) for row in pruned))
    for number, sparsity in enumerate(sparsities):
        mine = [row for row in pruned if _sparsity(row) == sparsity]
        mean, spread = _figures(mine, name)
        places = [methods.index(row["pruner"]) for row in mine]
        color = SHADES[number % len(SHADES)]
        axes.errorbar(mean, places, xerr=spread, label=f"{sparsity} %", color=color, fmt="o", capsize=2, lw=1.2)
    for value in _figures([row for row in table if row["pruner"] == "dense"], name)[0]:
        axes.axvline(value, color="black", ls=":", lw=1.2, label="dense")
    axes.set_yticks(range(len(methods)), methods)
    axes.set_ylim(-0.7, len(methods) - 0.3)
    axes.set_xlim(left=0)
    axes.set_xlabel(what)
    axes.grid(axis="both", color="#dddddd", lw=0.7)


def _figures(rows: Sequence[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Means and standard deviations in percent."""
    figures = [row["figures"][name] for row in rows]
    return [100 * figure["mean"] for figure in figures], [100 * (figure["std"] or 0) for figure in figures]


def _sparsity(row: dict[str, Any]) -> str:
    return f"{100 * row['sparsity']:.3g}"


def _mean(table: Sequence[dict[str, Any]], method: str, name: str) -> float:
    values = [row["figures"][name]["mean"] for row in table if row["pruner"] == method and name in row["figures"]]
    return sum(values) / max(1, len(values))
