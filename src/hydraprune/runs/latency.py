"""How fast exported networks were, as a file beside them says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from hydraprune.core.files import read_json
from hydraprune.core.spec import Count, Real, Several, Share
from hydraprune.runs.entries import Entry, parsed

LATENCY = "latency.json"
REMEDY = "measure again: `hydraprune latency`"
Positive = Annotated[Real, Field(gt=0)]
Nonnegative = Annotated[Real, Field(ge=0)]


class Timed(Entry):
    """One artifact in one runtime, at one batch size, on so many threads.

    Args:
        runtime: its name.
        batch: images at a time.
        threads: of the CPU.
        ms: milliseconds for a batch, median over repeats.
        quartiles: the first and the third.
        faster: how many times faster than the baseline at this batch size and on so many threads.
        difference: the largest difference of its logits from those of the artifact's first runtime, by the largest
            logit.
    """

    runtime: str
    batch: Several
    threads: Several
    ms: Positive
    quartiles: tuple[Positive, Positive]
    faster: Positive
    difference: Nonnegative


class Timings(Entry):
    """An artifact and its times.

    Args:
        artifact: its path, from the folder of the file that says this.
        format: how it was written; `checkpoint` for the folder of a stage.
        bytes: of it.
        smaller: how many times smaller than the dense network's tensors it is; None if nothing says.
        sparsity: removed / total over prunable weights; None if nothing says.
        clean: clean accuracy that was measured of it; None if none was.
        robust: its accuracy under the strongest attack; None if there was none.
        times: one for each runtime, batch size and number of threads.
    """

    artifact: str
    format: str
    bytes: Several
    smaller: Positive | None = None
    sparsity: Share | None = None
    clean: Share | None = None
    robust: Share | None = None
    times: Annotated[list[Timed], Field(min_length=1)]


class Latency(Entry):
    """What `hydraprune latency` measured in one go.

    Args:
        machine: processor, and how many of its cores could be used.
        versions: of python and the packages that computed.
        repeats: timings of each, of which all were interleaved.
        seed: of the images.
        shape: (C, H, W) of the images.
        baseline: artifact and runtime that others are compared with.
        artifacts: in the order in which they were given.
        left_out: which runtimes were not measured, and why.
    """

    machine: dict[str, Any]
    versions: dict[str, str]
    repeats: Several
    seed: Count
    shape: tuple[Several, Several, Several]
    baseline: tuple[str, str]
    artifacts: Annotated[list[Timings], Field(min_length=1)]
    left_out: list[str] = []


def read_latency(path: Path) -> Latency:
    """Read the file.

    Raises:
        CheckpointError: if it is missing or damaged.
    """
    return parsed(Latency, read_json(path, REMEDY, sealed=True), path.name, REMEDY)
