"""The results of a study: means and deviations over seeds, and differences between methods."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hydraprune.core.errors import CheckpointError, DataError, SpecError
from hydraprune.core.files import inside, write_json
from hydraprune.core.fingerprint import fingerprint
from hydraprune.core.results import Record
from hydraprune.core.spec import nearest
from hydraprune.report.summary import Row, averaged, for_document, for_terminal
from hydraprune.runs.cells import Done, read_end
from hydraprune.runs.checkpoint import read_digests
from hydraprune.runs.entries import Told
from hydraprune.runs.files import DATA, DONE, RESULTS, STUDY
from hydraprune.runs.folder import Network, measured
from hydraprune.study.schema import SEED, Cell, read_study
from hydraprune.study.settle import standing
from hydraprune.study.shared import key, trunk

if TYPE_CHECKING:
    from rich.table import Table

DRAWS = 10_000
"""Bootstrap samples of an interval."""
LEVEL = 0.95
"""How often an interval should hold the true difference."""


@dataclass(frozen=True)
class StudyRow(Row):
    """A network of a study; `pruner` shows its labels.

    Attributes:
        labels: axis -> label, of all axes but the seed; those that its cells have in common.
        seeds: in the order of the values of its figures.
    """

    labels: dict[str, str]
    seeds: list[str]

    def by_seed(self, name: str) -> dict[str, float]:
        """Seed -> accuracy."""
        return dict(zip(self.seeds, self.figures[name].values, strict=True))


@dataclass(frozen=True)
class Gain:
    """A difference of accuracies, in [-1, 1].

    Attributes:
        mean: over pairs of runs with the same seed.
        low, high: ends of the 95 % percentile interval of the mean over resampled pairs; None with a single pair, and
            too near to each other with a few.
        pairs: how many.
    """

    mean: float
    low: float | None
    high: float | None
    pairs: int


@dataclass(frozen=True)
class Difference:
    """What a network of a study gains over the baseline; `figures` are by column, the rest is as in its row."""

    stage: str
    pruner: str
    sparsity: float
    labels: dict[str, str]
    figures: dict[str, Gain]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def study_in(folder: Path) -> bool:
    """Whether `folder` holds a study."""
    return (folder / STUDY).is_file()


def results(folder: Path, where: Sequence[str] = (), told: Told | None = None) -> list[StudyRow]:
    """One row for every network of the finished cells, averaged over cells that differ in the seed only.

    A network that cells share is one row, with the labels that they share.

    Args:
        folder: of the study.
        where: `axis=label` each; only cells that have all of them count.
        told: gets a line about each measurement that is left out.

    Raises:
        SpecError: if nothing is finished, or no cell has such a label.
        DataError: if cells with the same settings of data read other images or labels.
    """
    path = inside(folder, folder / STUDY)
    try:
        cells = read_study(path).cells()
    except SpecError as error:
        raise SpecError(f"{error} (in {path})") from None
    for condition in where:
        cells = _with(cells, condition)
    states = standing(cells, folder)
    done = [cell for cell in cells if states[cell.name] == "done"]
    for cell in cells:
        try:
            read_end(Done, folder / cell.name / DONE)
        except CheckpointError as error:
            if told is None:
                raise
            told(str(error))
    if not done:
        of = f" with {' and '.join(where)}" if where else ""
        raise SpecError(f"no cell{of} of the study in {path} is finished; run `hydraprune study` first")
    _same_data(done, folder)
    axes = [axis for axis in cells[0].labels if len({cell.labels[axis] for cell in cells}) > 1]
    groups: dict[tuple[Any, ...], list[tuple[dict[str, str], Record]]] = {}
    found = {cell.name: measured(inside(folder, folder / cell.name), told) for cell in done}
    for labels, record in _networks(cells, found):
        kind = (record.stage, *(item for item in labels.items() if item[0] != SEED))
        groups.setdefault(kind, []).append((labels, record))
    table = []
    for members in groups.values():
        labels, record = members[0]
        shown = [_said(axis, labels[axis]) for axis in axes if axis in labels and axis not in (SEED, "sparsity")]
        if record.pruner is None:
            shown = ["dense", *shown]
        row = averaged([record for _, record in members], ", ".join(shown))
        kept = {axis: label for axis, label in labels.items() if axis != SEED}
        table.append(StudyRow(**vars(row), labels=kept, seeds=[labels.get(SEED, "") for labels, _ in members]))
    return table


def _said(axis: str, label: str) -> str:
    """What a label says by itself, or after the last part of its axis if it is a bare number."""
    return f"{axis.rpartition('.')[2]}={label}" if re.fullmatch(r"[\d.e+-]+", label) else label


def summarize(folder: Path, told: Told | None = None) -> list[StudyRow]:
    """The rows of `results`, which are also written into the study's folder, as `results.json`.

    Raises:
        SpecError, DataError: as `results`.
        TrainingError: if the disk refuses.
    """
    table = results(folder, told=told)
    write_json(folder / RESULTS, [row.plain() for row in table])
    return table


def _same_data(cells: Sequence[Cell], folder: Path) -> None:
    """See that no two cells that ask for the same data were run on different images or labels."""
    seen: dict[str, tuple[str, dict[str, str]]] = {}
    for cell in cells:
        path = folder / cell.name / DATA
        if path.exists():
            digests = read_digests(path)
            first, others = seen.setdefault(fingerprint(data=cell.recipe.data.plain()), (cell.name, digests))
            if digests != others:
                raise DataError(
                    f"{folder}: the cells {first} and {cell.name} were run on different images or labels, though their "
                    "settings of data are the same; restore the data, and run again what was run on the wrong ones"
                )


def _with(cells: Sequence[Cell], condition: str) -> list[Cell]:
    """The cells that have a label, given as `axis=label`."""
    axis, _, label = condition.partition("=")
    known = {f"{axis}={label}" for cell in cells for axis, label in cell.labels.items()}
    if condition not in known:
        raise SpecError(f"no cell has {condition!r}; write AXIS=LABEL; {nearest(condition, known)}")
    return [cell for cell in cells if cell.labels[axis] == label]


def _networks(cells: Sequence[Cell], found: Mapping[str, Mapping[str, Network]]) -> list[tuple[dict[str, str], Record]]:
    """Each network that was `found` in a cell: first those that cells share, with the labels on which these agree."""
    owners: dict[str, list[dict[str, str]]] = {}
    records: dict[tuple[bool, str, str], list[Record]] = {}
    for cell in cells:
        first = trunk(cell.recipe)
        common = set() if first is None else {stage.name for stage in first.stages}
        shared = cell.name if first is None else key(first)
        for owner in {shared, cell.name}:
            owners.setdefault(owner, []).append(cell.labels)
        # Later commands may have measured a shared network in the folder of any of its cells.
        for stage, network in found.get(cell.name, {}).items():
            if network.record is not None:
                own = stage not in common
                records.setdefault((own, cell.name if own else shared, stage), []).append(network.record)
    networks = []
    for own, owner, stage in sorted(records, key=itemgetter(0)):
        one, *others = owners[owner]
        labels = {axis: label for axis, label in one.items() if all(other[axis] == label for other in others)}
        networks.append((labels, reduce(Record.joined, records[own, owner, stage])))
    return networks


def differences(table: Sequence[StudyRow], baseline: str) -> list[Difference]:
    """What each row gains over the baseline, paired by seed, with a bootstrap interval.

    Rows are compared with the one that has the same labels on all other axes.

    Args:
        table: of `results`.
        baseline: a label such as `magnitude`, or `axis=label`.

    Raises:
        SpecError: if no row has the label, or several axes do.
    """
    axis, label = _axis_of(table, baseline)
    base = {_others(row, axis): row for row in table if row.labels.get(axis) == label}
    found = []
    for row in table:
        other = base.get(_others(row, axis))
        if other is None or other is row or axis not in row.labels:
            continue
        gains = {n: _gain(row.by_seed(n), other.by_seed(n)) for n in row.figures if n in other.figures}
        figures = {name: gain for name, gain in gains.items() if gain is not None}
        found.append(Difference(row.stage, row.pruner, row.sparsity, row.labels, figures))
    return found


def _axis_of(table: Sequence[StudyRow], baseline: str) -> tuple[str, str]:
    axis, equals, label = baseline.rpartition("=")
    known = {(a, text) for row in table for a, text in row.labels.items()}
    fitting = [(a, text) for a, text in known if text == label and (not equals or a == axis)]
    if not fitting:
        raise SpecError(f"no row is labelled {baseline!r}; {nearest(label, {text for _, text in known})}")
    if len(fitting) > 1:
        raise SpecError(f"{baseline!r} is a label on several axes; write {' or '.join('='.join(f) for f in fitting)}")
    return fitting[0]


def _others(row: StudyRow, axis: str) -> tuple[str, ...]:
    return (row.stage, *(f"{name}={label}" for name, label in row.labels.items() if name != axis))


def _gain(ours: dict[str, float], theirs: dict[str, float]) -> Gain | None:
    gains = np.array([value - theirs[seed] for seed, value in ours.items() if seed in theirs])
    if not len(gains):
        return None
    low = high = None
    if len(gains) > 1:
        draws = np.random.default_rng(0).choice(gains, (DRAWS, len(gains))).mean(1)
        low, high = (float(q) for q in np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    return Gain(float(gains.mean()), low, high, len(gains))


def as_csv(table: Sequence[StudyRow]) -> str:
    """One line for each row and figure; accuracies, and the share of weights removed, in [0, 1]."""
    axes = list(dict.fromkeys(axis for row in table for axis in row.labels))
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    columns = ["stage", "removed", "kept", "total", "figure", "samples", "runs", "mean", "std", "values"]
    lines.writerow([*axes, *columns])
    for row in table:
        start = [*(row.labels.get(axis, "") for axis in axes), row.stage, row.sparsity, row.kept, row.total]
        for name, figure in row.figures.items():
            values = " ".join(f"{value:.6g}" for value in figure.values)
            lines.writerow([*start, name, figure.samples, row.runs, figure.mean, figure.std, values])
    return text.getvalue()


def differences_table(gains: Sequence[Difference], baseline: str) -> Table:
    """For a terminal: percentage points."""
    caption = f"percentage points, paired by seed; {100 * LEVEL:.0f} % bootstrap intervals"
    return for_terminal(_lines(gains, baseline), caption)


def differences_markdown(gains: Sequence[Difference], baseline: str) -> str:
    """For a document: percentage points."""
    return for_document(_lines(gains, baseline))


def _lines(gains: Sequence[Difference], baseline: str) -> list[list[str]]:
    columns = list(dict.fromkeys(name for row in gains for name in row.figures))
    lines = [["network", "sparsity %", *(f"{name}, against {baseline}" for name in columns)]]
    for row in gains:
        points = [_points(row.figures[name]) if name in row.figures else "-" for name in columns]
        lines.append([row.pruner, f"{100 * row.sparsity:.1f}", *points])
    return lines


def _points(gain: Gain) -> str:
    interval = "" if gain.low is None or gain.high is None else f" [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
    return f"{100 * gain.mean:+.1f}{interval}"
