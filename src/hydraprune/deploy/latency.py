"""How fast artifacts are: every one in every runtime that takes it, interleaved, so that all see the same machine."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hydraprune.core.errors import CheckpointError, MissingError, SpecError
from hydraprune.core.files import existing, output_file, write_json
from hydraprune.core.seeds import generator
from hydraprune.core.spec import nearest, said, whole
from hydraprune.core.tensors import load_tensors
from hydraprune.deploy.opened import graph_of
from hydraprune.deploy.runtimes import RUNTIMES, Call, Images
from hydraprune.nets import Net
from hydraprune.runs.checkpoint import open_checkpoint
from hydraprune.runs.files import MASKS, META, MODEL, finished
from hydraprune.runs.latency import LATENCY, Latency, Timed, Timings
from hydraprune.runs.lock import own
from hydraprune.runs.manifest import EXPORTS, MANIFEST, PROBE, Manifest, beside, files, read_manifest, robust
from hydraprune.runs.meta import versions

LEAST, MOST = 0.01, 200
"""Seconds that a timing takes at least, unless it would take more calls than this."""
Progress = Callable[[str, int, int], None]


def latency(
    *artifacts: Path | str,
    batch: Sequence[int] = (1, 64),
    threads: Sequence[int] | None = None,
    runtimes: Sequence[str] | None = None,
    repeats: int = 20,
    baseline: Path | str | None = None,
    shape: tuple[int, int, int] | None = None,
    seed: int = 0,
    out: Path | str | None = None,
    trust_code: bool | Net = False,
    progress: Progress | None = None,
) -> Latency:
    """Time exported networks on the CPU, on random images, and write what was found as JSON.

    A time is the median over repeats; in each repeat all are timed once, in another order, each after a call that is
    not timed. Normalisation and folded norm layers are part of a network; preparing images is not.

    Args:
        artifacts: checkpoint folders, and files or folders that `export` wrote.
        batch: numbers of images at a time.
        threads: of the CPU; by default one, and as many as may be used.
        runtimes: names of `RUNTIMES`; by default those that are installed, but for `compiled`.
        repeats: timings of each.
        baseline: the artifact whose first runtime others are compared with; the first by default.
        shape: (C, H, W) of the images, where no artifact says it.
        seed: of the images.
        out: the file; by default `latency.json` in the folder that the artifacts have in common, which is `export/` for
            a checkpoint.
        trust_code: import and call the factory that a checkpoint may name; see `load`.
        progress: called with words, repeats done, and all, after each repeat.

    Raises:
        SpecError: without artifacts, for numbers below 1, unknown runtimes, or images of unknown or different shapes.
        CheckpointError: for an artifact that is damaged, or that gives logits that are not finite.
        MissingError: without the package of a runtime that was asked for, or of all that could run an artifact.
        TrainingError: if the file cannot be written.
    """
    for name, value in (("batch", batch), ("threads", threads), ("runtimes", runtimes)):
        if value is not None and (isinstance(value, str) or not isinstance(value, Sequence)):
            raise SpecError(f"{name} is {said(value)}; give a list: [{value!r}]")
    file = place_of(artifacts, out)
    paths = [Path(artifact) for artifact in artifacts]
    batch = [whole(number, "batch", 1) for number in batch]
    threads = [whole(number, "threads", 1) for number in dict.fromkeys(threads or (1, _cores()))]
    repeats = whole(repeats, "repeats", 1)
    subjects = [_Subject(path, trust_code) for path in paths]
    size = _common_shape(subjects, shape)
    first = 0 if baseline is None else _position(Path(baseline), paths)
    with _threads_restored():
        cases, left_out = _cases(subjects, runtimes, _images(size, batch, seed), threads, progress)
        for done in range(repeats):
            for number in np.random.default_rng(done).permutation(len(cases)):
                cases[number].time()
            if progress is not None:
                progress(f"repeat {done + 1} of {repeats}", done + 1, repeats)
    mine = [case for case in cases if case.subject is subjects[first]]
    base = {case.place: case.ms for case in mine if case.runtime == mine[0].runtime}
    names = {id(subject): Path(os.path.relpath(subject.path, file.parent)).as_posix() for subject in subjects}
    used = dict.fromkeys(case.runtime for case in cases)
    found = Latency(
        machine={"device": f"cpu {platform.processor() or platform.machine()}", "cores": _cores()},
        versions=versions() | {RUNTIMES[name].package: RUNTIMES[name].version() for name in used},
        repeats=repeats,
        seed=seed,
        shape=size,
        baseline=(names[id(subjects[first])], mine[0].runtime),
        artifacts=[
            Timings(
                artifact=names[id(subject)],
                times=[case.found(base[case.place]) for case in cases if case.subject is subject],
                **subject.facts(subjects),
            )
            for subject in subjects
        ],
        left_out=left_out,
    )
    with own(file.parent):
        write_json(file, found.plain())
    return found


class _Subject:
    """An artifact: what it says of itself."""

    def __init__(self, path: Path, trust_code: bool | Net) -> None:
        self.path, self.trust_code, self.graph = path, trust_code, graph_of(path)
        self.manifest: Manifest | None = read_manifest(path) if beside(path, MANIFEST).is_file() else None
        self.checkpoint = None if self.graph is not None else open_checkpoint(path, trust_code)

    def shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) of its images; None if nothing says it."""
        if self.graph is not None:
            from hydraprune.deploy.read_onnx import image_of, read_onnx

            _, *sides = image_of(read_onnx(self.graph).graph).type.tensor_type.shape.dim
            channels, height, width = (int(side.dim_value) for side in sides)
            return channels, height, width
        meta = None if self.checkpoint is None else self.checkpoint.meta
        if meta is not None and meta.in_channels is not None and meta.image_size is not None:
            return meta.in_channels, meta.image_size, meta.image_size
        probe = beside(self.path, PROBE)
        images = load_tensors(probe)[0].get("images") if probe.is_file() else None
        return None if images is None or images.dim() != 4 else (images.shape[1], images.shape[2], images.shape[3])

    def facts(self, others: Sequence[_Subject]) -> dict[str, Any]:
        """What `Timings` says of it but its times; a checkpoint's accuracies are those that an export of it tells."""
        manifest, checkpoint = self.manifest, self.checkpoint
        if manifest is not None:
            label, size, sparsity, found = manifest.label, manifest.bytes, manifest.sparsity, manifest.after
            smaller: float | None = manifest.smaller
        else:
            stage = finished(self.path)
            label = "checkpoint" if stage else self.path.suffix.removeprefix(".") or "folder"
            parts = [self.path / name for name in (MODEL, MASKS, META)] if stage else [f for _, f in files(self.path)]
            size, smaller, sparsity, found = sum(part.stat().st_size for part in parts), None, None, None
            if checkpoint is not None:
                smaller = sum(value.nbytes for value in checkpoint.values.values()) / size
                sparsity = checkpoint.meta.sparsity
                told = [m.before for m in (o.manifest for o in others) if m and m.source == checkpoint.digest]
                found = next((record for record in told if record is not None), None)
        return {
            "format": label,
            "bytes": size,
            "smaller": smaller,
            "sparsity": sparsity,
            "clean": None if found is None else found.clean_accuracy,
            "robust": None if found is None else robust(found),
        }


@dataclass
class _Case:
    """One artifact in one runtime, for one batch size and number of threads."""

    subject: _Subject
    runtime: str
    place: tuple[int, int]
    call: Call
    calls: int
    difference: float
    seconds: list[float] = field(default_factory=list)

    def time(self) -> None:
        """One timing, after a call that is not timed."""
        self.call()
        started = time.perf_counter()
        for _ in range(self.calls):
            self.call()
        self.seconds.append((time.perf_counter() - started) / self.calls)

    @property
    def ms(self) -> float:
        """The median, in milliseconds."""
        return 1000 * statistics.median(self.seconds)

    def found(self, base: float) -> Timed:
        """What was measured, beside the baseline's milliseconds."""
        low, high = (float(1000 * end) for end in np.quantile(self.seconds, (0.25, 0.75)))
        batch, threads = self.place
        return Timed(
            runtime=self.runtime,
            batch=batch,
            threads=threads,
            ms=self.ms,
            quartiles=(low, high),
            faster=base / self.ms,
            difference=self.difference,
        )


def _cases(
    subjects: Sequence[_Subject],
    runtimes: Sequence[str] | None,
    images: Sequence[Images],
    threads: Sequence[int],
    progress: Progress | None,
) -> tuple[list[_Case], list[str]]:
    """All that is timed, opened and warm, and which runtimes are not, and why."""
    for name in runtimes or ():
        if name not in RUNTIMES:
            raise SpecError(f"unknown runtime {name!r}; {nearest(name, RUNTIMES)}")
    wanted = runtimes or [name for name, runtime in RUNTIMES.items() if runtime.default]
    cases: list[_Case] = []
    missing: dict[str, None] = {}
    for number, subject in enumerate(subjects):
        expected: dict[int, Images] = {}
        for name in (name for name in wanted if RUNTIMES[name].takes(subject.path)):
            if progress is not None:
                progress(f"opening {subject.path.name} in {name}", number, len(subjects))
            try:
                for count in threads:
                    opened = RUNTIMES[name].opens(subject.path, count, subject.trust_code)
                    cases += [_warm(subject, name, count, opened(x), x, expected) for x in images]
            except MissingError as error:
                if runtimes:
                    raise
                missing[str(error)] = None
        if not any(case.subject is subject for case in cases):
            takers = [name for name, runtime in RUNTIMES.items() if runtime.takes(subject.path)]
            why = next(iter(missing), f"it is for {' and '.join(takers)}; name one of them in `--runtimes`")
            raise (MissingError if missing else SpecError)(f"nothing can run {subject.path}: {why}")
    return cases, list(missing)


def _warm(
    subject: _Subject, runtime: str, threads: int, call: Call, images: Images, expected: dict[int, Images]
) -> _Case:
    """A case that has been called, so that it is known how long it takes and what it gives."""
    logits = call()
    if not np.isfinite(logits).all():
        raise CheckpointError(f"{subject.path} gives logits that are not finite in {runtime}; export it again")
    first = expected.setdefault(len(images), np.array(logits))
    difference = float(np.abs(logits - first).max() / max(np.abs(first).max(), np.finfo(np.float32).tiny))
    call()
    started = time.perf_counter()
    call()
    calls = int(np.clip(LEAST / (time.perf_counter() - started), 1, MOST))
    return _Case(subject, runtime, (len(images), threads), call, calls, difference)


def _images(shape: tuple[int, int, int], batch: Sequence[int], seed: int) -> list[Images]:
    rng = generator(seed)
    return [torch.rand(number, *shape, generator=rng).numpy() for number in dict.fromkeys(batch)]


def _common_shape(subjects: Sequence[_Subject], given: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """The shape of all their images; what they say is tried before what was given."""
    shapes = {subject.path: subject.shape() or given for subject in subjects}
    (first, size), *others = shapes.items()
    for path, shape in shapes.items():
        if shape is None:
            raise SpecError(f"{path} does not say how large its images are; say it: `--shape C,H,W`")
    for path, shape in others:
        if shape != size:
            raise SpecError(f"{path} takes images of {shape}, and {first} of {size}; time them in two commands")
    assert size is not None
    return size


def place_of(artifacts: Sequence[Path | str], out: Path | str | None) -> Path:
    """The file that `latency` writes: `out`, or one in the folder that the artifacts have in common.

    Raises:
        SpecError: without artifacts, for one that is not there, or a file that cannot be written.
    """
    if not artifacts:
        raise SpecError("there is nothing to time; give checkpoint folders, or files that `hydraprune export` wrote")
    for artifact in artifacts:
        if not isinstance(artifact, Path | str):
            raise SpecError(f"an artifact is {said(artifact)}; give paths, one after the other")
    paths = [existing(artifact).absolute() for artifact in artifacts]
    if out is not None and Path(out).is_dir():
        raise SpecError(f"{out} is a folder; name a file in it, such as {LATENCY}")
    if out is not None:
        return output_file(out)
    homes = [path / EXPORTS if finished(path) else path.parent for path in paths]
    return output_file(Path(os.path.commonpath(homes)) / LATENCY)


def _position(baseline: Path, paths: Sequence[Path]) -> int:
    for number, path in enumerate(paths):
        if path.absolute() == baseline.absolute():
            return number
    raise SpecError(f"the baseline {baseline} is none of the artifacts; {nearest(str(baseline), map(str, paths))}")


def _cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
