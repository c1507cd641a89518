"""Results of one or several runs as a table."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from hydraprune.core.results import Record
from hydraprune.report.spread import Accuracy

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One network over the runs (seeds) that hold it.

    Attributes:
        stage: its folder inside the runs.
        pruner: how its connections were chosen, and what tells it from others; "dense" without a pruner.
        sparsity: share of the prunable weights that is gone; the mean over the runs, as is `kept`.
        kept: prunable weights left.
        total: prunable weights of the dense network.
        runs: how many hold it.
        figures: accuracies of `clean`, every attack, `verified BOUND` and `certified SETTINGS at RADIUS`.
    """

    stage: str
    pruner: str
    sparsity: float
    kept: int
    total: int
    runs: int
    figures: dict[str, Accuracy]

    @property
    def dense(self) -> bool:
        """Whether nothing was removed."""
        return self.kept == self.total

    @property
    def removed(self) -> str:
        """Sparsity in percent."""
        return f"{100 * self.sparsity:.3g}"

    @property
    def name(self) -> str:
        """Its pruner and sparsity."""
        return self.pruner if self.dense else f"{self.pruner} {self.removed} %"

    @property
    def smaller(self) -> float:
        """By what factor the prunable weights are fewer than in the dense network."""
        return self.total / max(self.kept, 1)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def averaged(records: Sequence[Record], pruner: str | None = None) -> Row:
    """The row of networks that differ in their seed only, by another name than their pruner's if there is one."""
    first, measured = records[0], [_accuracies(record) for record in records]
    figures = {
        name: Accuracy.of([values[name][0] for values in measured], samples)
        for name, (_, samples) in measured[0].items()
        if all(name in values for values in measured)
    }
    name, kept = pruner or first.pruner or "dense", round(statistics.mean(record.kept for record in records))
    sparsity = statistics.mean(record.sparsity for record in records)
    return Row(first.stage, name, sparsity, kept, first.total, len(records), figures)


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


def columns(table: Iterable[Row]) -> list[str]:
    """What was measured of any of the networks."""
    return list(dict.fromkeys(name for row in table for name in row.figures))


def _lines(table: Sequence[Row]) -> list[list[str]]:
    """Titles, and the texts of each row."""
    shown = columns(table)
    lines = [["network", "sparsity %", "weights kept", *(f"{name} %" for name in shown)]]
    for row in table:
        figures = [row.figures[name].percent if name in row.figures else "-" for name in shown]
        lines.append([row.pruner, f"{100 * row.sparsity:.1f}", f"{row.kept:,} of {row.total:,}", *figures])
    return lines


def as_table(table: Sequence[Row]) -> Table:
    """For a terminal."""
    return for_terminal(_lines(table))


def as_markdown(table: Sequence[Row]) -> str:
    """For a document."""
    return for_document(_lines(table))


def for_terminal(lines: Sequence[Sequence[str]], caption: str | None = None) -> Table:
    """Titles and rows of text, of which the first column is to the left."""
    from rich.table import Table

    titles, *rows = lines
    view = Table(caption=caption)
    for number, title in enumerate(titles):
        view.add_column(title, justify="left" if number == 0 else "right")
    for row in rows:
        view.add_row(*row)
    return view


def for_document(lines: Sequence[Sequence[str]]) -> str:
    """The same as Markdown."""
    titles, *rows = lines
    ruled = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in ruled)
