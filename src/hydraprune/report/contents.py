"""What the files of a run may say, as far as the page shows it: each value is checked before a section sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from hydraprune.core.errors import CheckpointError
from hydraprune.core.spec import Count, Real, Share
from hydraprune.runs.entries import Entry, Told, mapping, parsed, plain

Radius = Annotated[Real, Field(ge=0)]
Samples = Annotated[Count, Field(ge=1)]


class Epoch(Entry, extra="allow"):
    """A line of `metrics.jsonl`: any further metric is a number."""

    __pydantic_extra__: dict[str, Real] = Field(init=False)

    stage: str
    epoch: Annotated[Count, Field(ge=1, le=10**9)]
    seconds: Radius = 0.0
    accuracy: Share | None = None
    robust_accuracy: Share | None = None
    validation_accuracy: Share | None = None
    validation_robust_accuracy: Share | None = None


class Checkpoint(Entry):
    """`checkpoint.json`."""

    pruner: str | None = None
    sparsity: Share = 0.0
    kept: Count = 0
    total: Count = 0
    layers: dict[str, tuple[Count, Count]] = {}
    data: dict[str, str] = {}
    sha256: dict[str, str] = {}

    @model_validator(mode="after")
    def _counted(self) -> Checkpoint:
        if any(kept > total for kept, total in [(self.kept, self.total), *self.layers.values()]):
            raise ValueError("more weights are kept than there are")
        return self


class Curve(Entry):
    """Accuracy at some radii, in `curves.json`."""

    eps: Annotated[list[Radius], Field(min_length=1)]
    accuracy: list[Share]

    @model_validator(mode="after")
    def _as_long(self) -> Curve:
        if len(self.eps) != len(self.accuracy):
            raise ValueError(f"{len(self.eps)} radii have {len(self.accuracy)} accuracies")
        return self


class Effort(Entry):
    """The numbers of a check in `checks.json`: accuracy over some effort of the attack, or the loss around images."""

    eps: list[Radius] = []
    steps: list[Count] = []
    restarts: list[Count] = []
    accuracy: list[Share] = []
    x: list[Real] = []
    y: list[Real] = []
    loss: list[list[Real]] = []

    @model_validator(mode="after")
    def _shaped(self) -> Effort:
        if any(values and len(values) != len(self.accuracy) for values in (self.eps, self.steps, self.restarts)):
            raise ValueError("there is not one accuracy for each effort")
        if [len(row) for row in self.loss] != [len(self.x)] * len(self.y) or bool(self.x) != bool(self.y):
            raise ValueError("the losses are no grid of x and y")
        return self


class Checked(Entry):
    """A check in `checks.json`."""

    name: str
    passed: Annotated[bool, Field(strict=True)] | None
    found: str
    expected: str
    why: str
    figures: Effort = Effort()


class Certificate(Entry):
    """A line of a file of certificates by randomized smoothing."""

    index: Count
    label: Annotated[int, Field(strict=True)]
    prediction: Annotated[int, Field(strict=True)]
    radius: Radius


class Figure(Entry):
    """An accuracy in `claim.json`, and on how many images at which radius it was measured."""

    accuracy: Share
    samples: Samples
    eps: Radius


class Official(Entry):
    """What the benchmark's own protocol found."""

    clean_accuracy: Share
    autoattack: Figure
    fmn: Figure


class Strict(Entry):
    """What the stricter protocol found."""

    attacks: dict[str, Figure]


class Claimed(Entry):
    """`claim.json`."""

    name: str
    reasons: list[str]
    sparsity: Share
    sha256: str
    benchmark: Official
    strict: Strict


class Adversary(Entry):
    """The threat model of a recipe."""

    norm: str
    eps: Radius


class Stage(Entry):
    """A stage of a recipe."""

    kind: str
    name: str | None = None
    of: list[str] | None = None


class Compare(Entry):
    """Branches of a recipe."""

    pruners: list[Any]
    sparsities: list[Any]


class Source(Entry):
    """Where a recipe comes from."""

    reported: dict[str, Any] | None = None


RECIPE: dict[str, TypeAdapter[Any]] = {
    "name": TypeAdapter(str),
    "about": TypeAdapter(str | None),
    "threat": TypeAdapter(Adversary | None),
    "stages": TypeAdapter(list[Stage]),
    "compare": TypeAdapter(Compare | None),
    "source": TypeAdapter(Source | None),
}
"""Entries of a recipe that the page reckons with; the others are only shown."""


def settings(values: Any, where: str, told: Told, kinds: Mapping[str, TypeAdapter[Any]] = RECIPE) -> dict[str, Any]:
    """The entries of a recipe, or of other settings, that fit.

    Raises:
        CheckpointError: if it is no mapping.
    """
    found = {}
    for name, value in mapping(values, where).items():
        try:
            found[name] = plain(value)
            if name in kinds:
                kinds[name].validate_python(value)
        except (ValueError, ValidationError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            found.pop(name, None)
            told(f"{where}: {name}: {reason}")
    return found


def epochs(lines: Mapping[int, Any], where: str, told: Told) -> list[dict[str, Any]]:
    """The lines of a log that fit; of one that is there twice, the last."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for number, line in lines.items():
        try:
            epoch = parsed(Epoch, line, f"{where}:{number}")
        except CheckpointError as error:
            told(str(error))
            continue
        place = (epoch.stage, epoch.epoch)
        if place in found:
            told(f"an earlier line of epoch {epoch.epoch} of {epoch.stage}, which {where}:{number} repeats")
        found[place] = epoch.model_dump(exclude_unset=True)
    return list(found.values())
