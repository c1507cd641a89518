"""Results of one or several runs as a table and as a picture."""

from __future__ import annotations

import io
import statistics
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from hydraprune.core.checkpoint import write_atomically
from hydraprune.core.results import Record
from hydraprune.report.records import measured


def rows(runs: Sequence[Path], told: Callable[[str], None] = lambda why: None) -> list[dict[str, Any]]:
    """One row per network: means and standard deviations over the runs (seeds) that hold it.

    What commands measured later under the threat model of the recipe counts too (`hydraprune evaluate`, `verify`,
    `certify`); what was measured of other weights than the checkpoint's does not.

    A row has `pruner` ("dense" without one), `sparsity`, `kept`, `total`, `runs`, and for `clean`, every attack,
    `verified BOUND` and `certified SETTINGS at RADIUS` `{mean, std, values, samples}`; `std` is the sample standard
    deviation, None for a single run.

    Args:
        runs: folders.
        told: gets a line about each measurement that is left out.

    Raises:
        CheckpointError: if nothing was measured in a run, or a file is unreadable.
    """
    found: dict[str, list[Record]] = {}
    for run in runs:
        for stage, network in measured(run, told).items():
            if network.complete:
                found.setdefault(stage, []).append(network.record)
    return [{"stage": stage, **averaged(records)} for stage, records in found.items()]


def averaged(records: Sequence[Record]) -> dict[str, Any]:
    """A row, but for its `stage`, of networks that differ in their seed only."""
    first, measured = records[0], [_accuracies(record) for record in records]
    figures = {
        name: over_runs([values[name][0] for values in measured], samples)
        for name, (_, samples) in measured[0].items()
        if all(name in values for values in measured)
    }
    row = {"pruner": first.pruner or "dense", "sparsity": first.sparsity, "kept": first.kept, "total": first.total}
    return row | {"runs": len(records), "figures": figures}


def _accuracies(record: Record) -> dict[str, tuple[float, int]]:
    """Column -> accuracy, and the number of images that it was measured on."""
    columns = {"clean": (record.clean_accuracy, record.samples)}
    for name, share in record.robust_accuracy.items():
        columns[name] = (share, record.images(name))
    for name, proof in record.verified.items():
        columns[f"verified {name}"] = (proof.verified_accuracy, proof.samples)
    for name, found in record.certified.items():
        for radius, share in found.certified_accuracy.items():
            columns[f"certified {name} at {radius:.3g}"] = (share, found.samples)
    return columns


def over_runs(values: list[float], samples: int) -> dict[str, Any]:
    """What a row says of a column: one value for each run."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "std": deviation, "values": values, "samples": samples}


def _percent(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return "-"
    spread = f" ± {100 * figure['std']:.1f}" if figure["std"] is not None else ""
    return f"{100 * figure['mean']:.1f}{spread}"


def _columns(table: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in table for name in row["figures"]))


def _cells(row: dict[str, Any], columns: list[str]) -> list[str]:
    kept = f"{row['kept']:,} of {row['total']:,}"
    return [row["pruner"], f"{100 * row['sparsity']:.1f}", kept, *(_percent(row["figures"].get(c)) for c in columns)]


def _titles(columns: list[str]) -> list[str]:
    return ["network", "sparsity %", "weights kept", *(f"{name} %" for name in columns)]


def as_table(table: Sequence[dict[str, Any]]) -> Table:
    """For a terminal."""
    columns = _columns(table)
    view = Table()
    for number, title in enumerate(_titles(columns)):
        view.add_column(title, justify="left" if number == 0 else "right")
    for row in table:
        view.add_row(*_cells(row, columns))
    return view


def as_markdown(table: Sequence[dict[str, Any]]) -> str:
    """For a document."""
    columns = _columns(table)
    lines = [_titles(columns), ["---", *["---:"] * (2 + len(columns))], *(_cells(row, columns) for row in table)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


COLORS = {"hydra": "#0072b2", "magnitude": "#d55e00", "random": "#7f7f7f"}
SPARE = ["#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"]
MARKS = "osD^vP*X"


def draw(table: Sequence[dict[str, Any]], path: Path, title: str = "") -> None:
    """A PNG of accuracy against sparsity, a line per pruner: panels for the first two attacks and for clean accuracy.

    Bars are standard deviations over runs. The horizontal axis is spaced by compression, total / kept.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    panels = [*[name for name in _columns(table) if name != "clean"][:2], "clean"]
    dense = [row for row in table if row["pruner"] == "dense"]
    methods = list(dict.fromkeys(row["pruner"] for row in table if row["pruner"] != "dense"))
    spare = iter(SPARE * len(methods))
    colors = {method: COLORS.get(method) or next(spare) for method in methods}
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(4.6 * len(panels), 3.8), layout="constrained")
        for number, name in enumerate(panels, start=1):
            axes = figure.add_subplot(1, len(panels), number)
            ticks: dict[float, str] = {}
            for rank, method in enumerate(methods):
                mine = sorted((r for r in table if r["pruner"] == method), key=lambda r: r["sparsity"])
                mine = [r for r in mine if name in r["figures"]]
                ratio = [r["total"] / r["kept"] for r in mine]
                ticks |= {x: f"{100 * r['sparsity']:.3g}" for x, r in zip(ratio, mine, strict=True)}
                mean = [100 * r["figures"][name]["mean"] for r in mine]
                spread = [100 * (r["figures"][name]["std"] or 0) for r in mine]
                axes.errorbar(
                    ratio,
                    mean,
                    spread,
                    label=method,
                    color=colors[method],
                    marker=MARKS[rank % len(MARKS)],
                    capsize=3,
                    lw=1.8,
                )
            for row in dense:
                if name in row["figures"]:
                    axes.axhline(100 * row["figures"][name]["mean"], color="black", ls=":", lw=1.2, label="dense")
            if ticks:
                axes.set_xscale("log")
                axes.set_xticks(list(ticks), list(ticks.values()))
                axes.minorticks_off()
            axes.set_ylim(bottom=0)
            axes.set_xlabel("sparsity (%)")
            proven = name == "clean" or name.startswith(("verified ", "certified "))
            axes.set_ylabel(textwrap.fill(f"{name if proven else name + ' robust'} accuracy (%)", 36))
            axes.grid(axis="y", color="#dddddd", lw=0.7)
            if number == 1:
                figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
        if title:
            figure.suptitle(title)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=130)
    write_atomically(path, picture.getvalue())
