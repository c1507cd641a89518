"""Results of one or several runs as a table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from hydraprune.core.results import Record
from hydraprune.runs.entries import Told
from hydraprune.runs.records import measured


def rows(runs: Sequence[Path], told: Told | None = None) -> list[dict[str, Any]]:
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
        CheckpointError: if nothing was measured in a run, or, unless there is `told`, a file is damaged.
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
        columns[name] = (share, record.tried(name))
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


def columns(table: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in table for name in row["figures"]))


def _cells(row: dict[str, Any], columns: list[str]) -> list[str]:
    kept = f"{row['kept']:,} of {row['total']:,}"
    return [row["pruner"], f"{100 * row['sparsity']:.1f}", kept, *(_percent(row["figures"].get(c)) for c in columns)]


def _titles(columns: list[str]) -> list[str]:
    return ["network", "sparsity %", "weights kept", *(f"{name} %" for name in columns)]


def as_table(table: Sequence[dict[str, Any]]) -> Table:
    """For a terminal."""
    shown = columns(table)
    view = Table()
    for number, title in enumerate(_titles(shown)):
        view.add_column(title, justify="left" if number == 0 else "right")
    for row in table:
        view.add_row(*_cells(row, shown))
    return view


def as_markdown(table: Sequence[dict[str, Any]]) -> str:
    """For a document."""
    shown = columns(table)
    lines = [_titles(shown), ["---", *["---:"] * (2 + len(shown))], *(_cells(row, shown) for row in table)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
