"""Run folders as they are found: whole, half-written, damaged or missing; each file is read when it is asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from hydraprune.core.errors import CheckpointError, HydrapruneError, SpecError
from hydraprune.core.files import inside, read_json, read_lines, read_yaml
from hydraprune.core.results import Record
from hydraprune.core.spec import Spec
from hydraprune.core.tensors import load_tensors
from hydraprune.runs import contents, entries
from hydraprune.runs.cells import Done, Failure, read_end
from hydraprune.runs.checkpoint import unpacked
from hydraprune.runs.entries import Told
from hydraprune.runs.files import DONE, ENVIRONMENT, FAILED, MASKS, META, METRICS, RECIPE, RESULTS, SHARED, STUDY
from hydraprune.runs.manifest import EXPORTS, MANIFEST, Manifest, beside, read_manifest
from hydraprune.runs.records import (
    Others,
    StaleError,
    bare,
    fits,
    gathered,
    joined,
    later_files,
    read_later,
    read_records,
)

T = TypeVar("T")
S = TypeVar("S", bound=Spec)


@dataclass(eq=False)
class Network:
    """A checkpoint of a run, and what lies beside it.

    Attributes:
        run: the run that it belongs to; it notes what cannot be read.
        stage: its folder inside the run.
        meta: what its `checkpoint.json` says; empty if there is none, or none that can be read.
        record: what was found under the threat model of the recipe; None if it was not measured under that.
        others: what was found under other threat models.
    """

    run: RunFolder
    stage: str
    meta: contents.Summary
    record: Record | None
    others: Others

    @property
    def known(self) -> Record | None:
        """The record; of a network that met other threat models only, what does not depend on them."""
        return self.record or next((bare(one) for one in self.others.values()), None)

    @property
    def pruner(self) -> str:
        """How its connections were chosen; "dense" without a pruner."""
        return (self.known or self.meta).pruner or "dense"

    @property
    def sparsity(self) -> float:
        """Share of the prunable weights that is gone."""
        return (self.known or self.meta).sparsity

    @property
    def digest(self) -> str | None:
        """Of its weights; None if neither its checkpoint nor a record says."""
        return self.meta.network or (None if self.known is None else self.known.network)

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
        return self.tensors(MASKS, unpacked) or {}

    def certificates(self) -> dict[str, list[contents.CertifiedLine]]:
        """File stem -> the certificates of all images, for the files of lines that have a radius.

        A share of the images is not to be had from some of the lines: a file with a damaged one is left out.
        """
        found = {}
        for path in sorted((self.run.path / self.stage).glob("*.jsonl")):
            lines = self.read(self._certificates, path.name)
            if lines:
                found[path.stem] = lines
        return found

    def exported(self) -> dict[str, Manifest]:
        """Name -> manifest, of what was exported from the checkpoint and is there, whole and of these weights."""
        found = {}
        for name in sorted(path.name for path in (self.run.path / self.stage / EXPORTS).glob("*")):
            manifest = self.read(self._manifest, f"{EXPORTS}/{name}")
            if manifest is not None:
                found[name] = manifest
        return found

    def _manifest(self, artifact: Path) -> Manifest | None:
        """None for what is no artifact."""
        if not beside(artifact, MANIFEST).is_file():
            return None
        manifest = read_manifest(artifact)
        if not fits(manifest.source, self.meta.network):
            raise StaleError("it was made from other weights than the checkpoint's; export it again")
        return manifest

    def _certificates(self, path: Path) -> list[contents.CertifiedLine]:
        lines = {n: line for n, line in read_lines(path).items() if "radius" in line}
        every = [entries.parsed(contents.CertifiedLine, line, f"{path}:{number}") for number, line in lines.items()]
        return list({line.index: line for line in every}.values())


@dataclass(eq=False)
class RunFolder:
    """What there is of a run.

    Attributes:
        path: its folder.
        strict: whether what is damaged raises, instead of being left out and noted.
        problems: what is missing or cannot be read, in words.
    """

    path: Path
    strict: bool = False
    problems: list[str] = field(default_factory=list)

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """As written, unvalidated; empty if unreadable."""
        return self.read(lambda file: contents.settings(read_yaml(file), file.name, self.left_out), RECIPE) or {}

    @cached_property
    def environment(self) -> dict[str, Any]:
        """The machine."""
        return (
            self.read(lambda file: contents.settings(read_json(file), file.name, self.left_out, {}), ENVIRONMENT) or {}
        )

    @cached_property
    def epochs(self) -> list[contents.Epoch]:
        """Of every stage; of the lines that are damaged, however many, one is named."""
        damaged: list[str] = []
        found = self.read(
            lambda file: contents.epochs(read_lines(file, "it is left out", damaged.append), file.name, damaged.append),
            METRICS,
        )
        if damaged:
            self.left_out(damaged[0] + (f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""))
        return found or []

    @cached_property
    def labels(self) -> dict[str, str]:
        """Axis -> label, of a finished cell of a study."""
        done = self.read(lambda file: read_end(Done, file), DONE)
        return {} if done is None else done.labels

    @cached_property
    def networks(self) -> list[Network]:
        """Its checkpoints, and what was measured, in the order of its stages."""
        told = None if self.strict else self.left_out
        records = joined(self.read(lambda _: read_records(self.path, told), RESULTS) or [])
        metas = {
            file.parent.relative_to(self.path).as_posix(): self.read(_summary, str(file.relative_to(self.path)))
            for file in sorted(self.path.rglob(META))
        }
        found = []
        order = [stage.get("name") for stage in trained(self.recipe)] + [*records, *metas]
        for stage in (stage for stage in dict.fromkeys(order) if stage in records or stage in metas):
            network = self._network(stage, metas.get(stage) or contents.Summary(), records.get(stage))
            # Without either it might be taken for a dense one.
            if network.known is not None or {"pruner", "sparsity"} <= network.meta.model_fields_set:
                found.append(network)
        return found

    def _network(self, stage: str, meta: contents.Summary, record: Record | None) -> Network:
        """What is known of a network; records of other weights or images are a problem of the run."""
        if record is not None and not fits(record.network, meta.network):
            self.tell(f"{RESULTS}: {stage} left out: it was measured on other weights; run the recipe again")
            record = None

        def later(names: Iterable[str]) -> list[Record]:
            found = (
                self.read(lambda path: read_later(path, stage, meta.network, meta.images), stage, n) for n in names
            )
            return [one for one in found if one is not None]

        here, below = map(later, later_files(self.path / stage))
        return Network(self, stage, meta, *gathered(record, here, below))

    @property
    def measured(self) -> list[Network]:
        """The networks that were evaluated as the recipe has it: the dense one first, then by sparsity."""
        return sorted((n for n in self.networks if n.record is not None), key=lambda n: n.sparsity)

    @property
    def dense(self) -> Network | None:
        """The network that pruning started from."""
        return next((n for n in reversed(self.networks) if n.pruner == "dense"), None)

    def read(self, reader: Callable[[Path], T], *parts: str) -> T | None:
        """What `reader` makes of a file; None if it is missing, or left out.

        Raises:
            CheckpointError: if the folder is read strictly, and the file is damaged.
        """
        path = self.path.joinpath(*parts)
        if not os.path.lexists(path):
            return None
        try:
            return reader(inside(self.path, path))
        except HydrapruneError as error:
            if self.strict and not isinstance(error, StaleError):
                raise
            self.tell(f"{'/'.join(parts)} left out: {error}")
            return None

    def left_out(self, what: str) -> None:
        """Note an entry of a file that does not fit."""
        self.tell(f"left out: {what}")

    def tell(self, problem: str) -> None:
        """Note a problem, once."""
        if problem not in self.problems:
            self.problems.append(problem)

    def pass_on(self, told: Told | None) -> None:
        """Tell the problems so far to someone else, if there is someone."""
        if told is not None:
            for problem in self.problems:
                told(f"{self.path}: {problem}")

    def survey(self) -> None:
        """Read all but tensors, and note what is missing and how far a run came."""
        found, wanted, epochs = len(self.measured), _wanted(self.recipe), self.epochs
        _ = self.environment, self.labels
        if failure := self.read(lambda file: read_end(Failure, file), FAILED):
            self.tell(f"failed: {failure.error}")
        if not self.recipe:
            self.tell(f"{RECIPE} is missing or unreadable")
        if found < wanted:
            place = f"; it stands at epoch {epochs[-1].epoch} of {epochs[-1].stage}" if epochs else ""
            self.tell(f"{found} of {wanted} networks measured{place}")


def find_runs(paths: Sequence[Path]) -> list[RunFolder]:
    """The runs at `paths`: each a run folder, or a folder with run folders somewhere below.

    A path without a run is a run with a problem.

    Raises:
        SpecError: if there is no run at all.
    """
    runs = []
    for path in paths:
        runs += [RunFolder(folder) for folder in folders_in(path)] or [
            RunFolder(path, problems=["there is no run in this folder"])
        ]
    if not any(is_run(run.path) for run in runs):
        names = ", ".join(str(path) for path in paths)
        raise SpecError(f"no run in {names}; give folders that `hydraprune run` wrote, or a folder of such folders")
    for run in runs:
        if is_run(run.path):
            run.survey()
    return runs


def folders_in(path: Path) -> list[Path]:
    """The run folder at `path`, or those below; of what the runs of a study have in common each of them has its own."""
    found = []
    for folder, children, files in os.walk(path):
        children.sort()
        if STUDY in files and SHARED in children:
            children.remove(SHARED)
        if is_run(Path(folder)):
            children.clear()
            found.append(Path(folder))
    return found


def measured(path: Path, told: Told | None = None) -> dict[str, Network]:
    """Stage -> the network of a run folder, for those of which something is known.

    What is of other weights than those of the checkpoint is left out.

    Args:
        told: gets a line about each file that is left out; without it, one that is damaged raises.

    Raises:
        CheckpointError: if nothing was measured, or, unless there is `told`, a file is damaged.
    """
    run = RunFolder(path, strict=told is None)
    found = {network.stage: network for network in run.networks if network.known is not None}
    if not found and not run.problems:
        raise CheckpointError(f"{path / RESULTS} is missing")
    run.pass_on(told)
    return found


def trained(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """The stages of a recipe that make networks."""
    return [stage for stage in recipe.get("stages") or [] if stage["kind"] == "fit"]


def is_run(path: Path) -> bool:
    """Whether it is a run; the folder of a study, which has results as well, is none."""
    return any(os.path.isfile(path / file) for file in (RECIPE, RESULTS, FAILED)) and not (path / STUDY).is_file()


def _wanted(recipe: dict[str, Any]) -> int:
    """How many networks the evaluations of `recipe` are to measure; 0 if it does not say."""
    made = [stage.get("name") for stage in trained(recipe)]
    wanted = {name for s in recipe.get("stages") or [] if s["kind"] == "evaluate" for name in s.get("of") or made[-1:]}
    return len(wanted & {*made})


def _summary(path: Path) -> contents.Summary:
    return entries.parsed(contents.Summary, read_json(path), path.name)
