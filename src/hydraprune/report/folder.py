"""Run folders as they are found: whole, half-written, damaged or missing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from hydraprune.core.errors import HydrapruneError, SpecError
from hydraprune.core.files import inside, read_json, read_lines, read_yaml
from hydraprune.core.results import Record
from hydraprune.core.spec import Spec
from hydraprune.core.tensors import load_tensors
from hydraprune.core.threat import ThreatModel
from hydraprune.report import contents
from hydraprune.runs import entries
from hydraprune.runs.cells import FAILED, read_failure
from hydraprune.runs.checkpoint import unpacked
from hydraprune.runs.records import (
    META,
    RESULTS,
    Measured,
    digest_of,
    fits,
    gathered,
    images_of,
    joined,
    read_later,
    read_records,
)

T = TypeVar("T")
S = TypeVar("S", bound=Spec)
MARKERS = ("recipe.yaml", RESULTS, FAILED)


@dataclass(eq=False)
class Network:
    """A checkpoint of a run, and what lies beside it. Files are read when they are asked for.

    Attributes:
        run: the run that it belongs to; it notes what cannot be read.
        stage: its folder inside the run.
        meta: `checkpoint.json`; empty if there is none, or none that can be read.
        record: what was found under the threat model of the recipe; without attacks if it met others only, None if it
            was not measured.
        others: what was found under other threat models.
        complete: whether it was measured under the threat model of the recipe.
    """

    run: Run
    stage: str
    meta: dict[str, Any]
    record: Record | None
    others: dict[ThreatModel, Record]
    complete: bool

    @property
    def pruner(self) -> str:
        """How its connections were chosen; "dense" without a pruner."""
        name = self.record.pruner if self.record is not None else self.meta.get("pruner")
        return str(name or "dense")

    @property
    def sparsity(self) -> float:
        """Share of the prunable weights that is gone."""
        return self.record.sparsity if self.record is not None else float(self.meta.get("sparsity", 0))

    @property
    def name(self) -> str:
        """For columns and legends."""
        return self.pruner if not self.sparsity else f"{self.pruner} {100 * self.sparsity:.3g} %"

    def read(self, reader: Callable[[Path], T], file: str) -> T | None:
        """What `reader` makes of a file beside the checkpoint; None if it is missing or damaged."""
        return self.run.read(reader, self.stage, file)

    def json(self, file: str, parse: Callable[[Any], T]) -> T | None:
        """What `parse` makes of a JSON file beside the checkpoint; None if it is missing or damaged."""
        return self.read(lambda path: parse(read_json(path)), file)

    def each(self, kind: type[S], file: str) -> list[S]:
        """The entries of a list in a JSON file beside the checkpoint that are whole."""
        return self.json(file, lambda value: entries.each(kind, value, self.place(file), self.run.left_out)) or []

    def named(self, kind: type[S], file: str, key: str) -> dict[str, S]:
        """Those of the mapping `key` in a JSON file beside the checkpoint."""

        def parse(value: Any) -> dict[str, S]:
            found = entries.mapping(value, self.place(file)).get(key) or {}
            return entries.named(kind, found, self.place(file), self.run.left_out)

        return self.json(file, parse) or {}

    def place(self, file: str) -> str:
        """A file beside the checkpoint as a path inside of the run."""
        return f"{self.stage}/{file}"

    def tensors(self, file: str, parse: Callable[[dict[str, Tensor], dict[str, Any]], T]) -> T | None:
        """What `parse` makes of tensors and their meta data; None if they are missing or damaged."""
        return self.read(lambda path: parse(*load_tensors(path)), file)

    def masks(self) -> dict[str, Tensor]:
        """Canonical name -> mask; empty for a dense network."""
        return self.tensors("masks.safetensors", unpacked) or {}

    def certificates(self) -> dict[str, list[contents.Certificate]]:
        """File stem -> the certificates of all images, for the files of lines that have a radius.

        A share of the images is not to be had from some of the lines: a file with a damaged one is left out.
        """
        found = {}
        for path in sorted((self.run.path / self.stage).glob("*.jsonl")):
            lines = self.read(self._certificates, path.name)
            if lines:
                found[path.stem] = lines
        return found

    def _certificates(self, path: Path) -> list[contents.Certificate]:
        lines = {n: line for n, line in read_lines(path).items() if "radius" in line}
        every = [entries.parsed(contents.Certificate, line, f"{path}:{number}") for number, line in lines.items()]
        return list({line.index: line for line in every}.values())


@dataclass(eq=False)
class Run:
    """What there is of a run.

    Attributes:
        path: its folder.
        recipe: as written, unvalidated; empty if unreadable.
        environment: the machine.
        metrics: one record per epoch and stage.
        networks: its checkpoints, and what was measured.
        problems: what is missing or cannot be read, in words.
    """

    path: Path
    recipe: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    networks: list[Network] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def measured(self) -> list[Network]:
        """The networks that were evaluated as the recipe has it: the dense one first, then by sparsity."""
        return sorted((n for n in self.networks if n.complete), key=lambda n: n.sparsity)

    @property
    def dense(self) -> Network | None:
        """The network that pruning started from."""
        return next((n for n in reversed(self.networks) if n.pruner == "dense"), None)

    @property
    def pruned(self) -> list[Network]:
        """Measured networks with masks."""
        return [n for n in self.measured if n.pruner != "dense"]

    def read(self, reader: Callable[[Path], T], *parts: str) -> T | None:
        """What `reader` makes of a file; None if it is missing, and a noted problem if it is damaged."""
        path = self.path.joinpath(*parts)
        if not os.path.lexists(path):
            return None
        try:
            return reader(inside(self.path, path))
        except HydrapruneError as error:
            self.tell(f"{'/'.join(parts)} left out: {error}")
            return None

    def left_out(self, what: str) -> None:
        """Note an entry of a file that does not fit."""
        self.tell(f"left out: {what}")

    def tell(self, problem: str) -> None:
        """Note a problem, once."""
        if problem not in self.problems:
            self.problems.append(problem)


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs at `paths`: each a run folder, or a folder with run folders somewhere below.

    A path without a run is a run with a problem.

    Raises:
        SpecError: if there is no run at all.
    """
    runs = []
    for path in paths:
        folders = [path] if _is_run(path) else list(_below(path))
        runs += [read_run(folder) for folder in folders] or [Run(path, problems=["there is no run in this folder"])]
    if not any(_is_run(run.path) for run in runs):
        names = ", ".join(str(path) for path in paths)
        raise SpecError(f"no run in {names}; give folders that `hydraprune run` wrote, or a folder of such folders")
    return runs


def read_run(path: Path) -> Run:
    """Read a run folder, and note what is wrong with it."""
    run = Run(path)
    run.recipe = run.read(lambda file: contents.settings(read_yaml(file), file.name, run.left_out), "recipe.yaml") or {}
    run.environment = (
        run.read(lambda file: contents.settings(read_json(file), file.name, run.left_out, {}), "environment.json") or {}
    )
    run.metrics = run.read(lambda file: _metrics(run, file), "metrics.jsonl") or []
    records = joined(run.read(lambda _: read_records(path, run.left_out), RESULTS) or [])
    metas: dict[str, dict[str, Any]] = {}
    for file in sorted(path.rglob(META)):
        stage = file.parent.relative_to(path).as_posix()
        metas[stage] = run.read(_meta, stage, file.name) or {}
    order = [str(line["stage"]) for line in run.metrics] + [*records, *metas]
    for stage in dict.fromkeys(stage for stage in order if stage in records or stage in metas):
        meta = metas.get(stage, {})
        known = _measured(run, stage, meta, records.get(stage))
        if known is not None or {"pruner", "sparsity"} <= meta.keys():  # else it might be taken for a dense one
            run.networks.append(Network(run, stage, meta, *(known or (None, {}, False))))
    if failure := run.read(lambda file: read_failure(file.parent), FAILED):
        run.tell(f"failed: {failure.error}")
    if not run.recipe:
        run.problems.append("recipe.yaml is missing or unreadable")
    wanted, found = _wanted(run.recipe), len(run.measured)
    if found < wanted:
        last = run.metrics[-1] if run.metrics else {}
        place = f"; it stands at epoch {last['epoch']} of {last['stage']}" if last else ""
        run.problems.append(f"{found} of {wanted} networks measured{place}")
    return run


def _measured(run: Run, stage: str, meta: dict[str, Any], record: Record | None) -> Measured | None:
    """What is known of a network; records of other weights or images are a problem of the run."""
    digest, images = digest_of(meta), images_of(meta)
    if record is not None and not fits(record.network, digest):
        run.problems.append(f"{RESULTS}: {stage} left out: it was measured on other weights; run the recipe again")
        record = None

    def read(file: str) -> Record | None:
        return run.read(lambda path: read_later(path, stage, digest, images), stage, file)

    return gathered(record, run.path / stage, read)


def _is_run(path: Path) -> bool:
    return any(os.path.isfile(path / marker) for marker in MARKERS)


def _below(path: Path) -> Iterable[Path]:
    for folder, children, files in os.walk(path):
        children.sort()
        if "study.yaml" in files and "shared" in children:
            children.remove("shared")  # what its runs have in common; each of them has it too
        if _is_run(Path(folder)):
            children.clear()
            yield Path(folder)


def _wanted(recipe: dict[str, Any]) -> int:
    """How many networks the evaluations of `recipe` are to measure; 0 if it does not say."""
    compare = recipe.get("compare")
    branches = len(compare["pruners"]) * len(compare["sparsities"]) if compare else 1
    fits: dict[str, int] = {}
    wanted: dict[str, int] = {}
    for stage in recipe.get("stages", []):
        if stage["kind"] == "fit":
            pruned = stage.get("pruner") or branches in fits.values()
            fits[stage.get("name")] = branches if pruned else 1
        elif stage["kind"] == "evaluate":
            names = stage.get("of") or list(fits)[-1:]
            wanted |= {name: fits.get(name, 0) for name in names}
    return sum(wanted.values())


def _meta(path: Path) -> dict[str, Any]:
    return entries.parsed(contents.Checkpoint, read_json(path), path.name).model_dump(exclude_unset=True)


def _metrics(run: Run, path: Path) -> list[dict[str, Any]]:
    """The epochs that are whole; however many lines are damaged, one is named."""
    damaged: list[str] = []
    found = contents.epochs(read_lines(path, "it is left out", damaged.append), path.name, damaged.append)
    if damaged:
        run.left_out(damaged[0] + (f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""))
    return found
