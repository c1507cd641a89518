"""What the files of a run may say, as far as reports show it: each value is checked before anyone sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from hydraprune.core.errors import CheckpointError
from hydraprune.core.spec import Count, Real, Share
from hydraprune.runs.entries import Entry, Told, mapping, parsed, plain
from hydraprune.runs.files import MODEL

Radius = Annotated[Real, Field(ge=0)]
Samples = Annotated[Count, Field(ge=1)]


class Epoch(Entry, extra="allow"):
    """A line of `metrics.jsonl`: any further metric is a number, and a share if it is called an accuracy."""

    __pydantic_extra__: dict[str, Real] = Field(init=False)

    stage: str
    epoch: Annotated[Count, Field(ge=1, le=10**9)]
    seconds: Radius = 0.0

    @model_validator(mode="after")
    def _shares(self) -> Epoch:
        for name, value in self.metrics.items():
            if is_share(name) and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}, and no share from 0 to 1")
        return self

    @property
    def metrics(self) -> dict[str, float]:
        """What was measured in the epoch, by name."""
        return self.__pydantic_extra__


def is_share(metric: str) -> bool:
    """Whether a metric of that name is a share of images, from 0 to 1."""
    return metric.endswith("accuracy")


class Summary(Entry):
    """What `checkpoint.json` says of a network, without its tensors."""

    pruner: str | None = None
    sparsity: Share = 0.0
    kept: Count = 0
    total: Count = 0
    layers: dict[str, tuple[Count, Count]] = {}
    data: dict[str, str] = {}
    sha256: dict[str, str] = {}

    @model_validator(mode="after")
    def _counted(self) -> Summary:
        if any(kept > total for kept, total in [(self.kept, self.total), *self.layers.values()]):
            raise ValueError("more weights are kept than there are")
        return self

    @property
    def network(self) -> str | None:
        """Digest of the weights; None if the file does not say."""
        return self.sha256.get(MODEL)

    @property
    def images(self) -> str | None:
        """Digest of the test images of its run; None if the file does not say."""
        return self.data.get("test")


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


class CertifiedLine(Entry):
    """A line of a file of certificates by randomized smoothing."""

    index: Count
    label: Annotated[int, Field(strict=True)]
    prediction: Annotated[int, Field(strict=True)]
    radius: Radius


class ClaimedAccuracy(Entry):
    """An accuracy in `claim.json`, and on how many images at which radius it was measured."""

    accuracy: Share
    samples: Samples
    eps: Radius


class OfficialProtocol(Entry):
    """What the benchmark's own protocol found."""

    clean_accuracy: Share
    autoattack: ClaimedAccuracy
    fmn: ClaimedAccuracy


class StrictProtocol(Entry):
    """What the stricter protocol found."""

    attacks: dict[str, ClaimedAccuracy]


class Claimed(Entry):
    """`claim.json`."""

    name: str
    reasons: list[str]
    sparsity: Share
    sha256: str
    benchmark: OfficialProtocol
    strict: StrictProtocol


class RecipeThreat(Entry):
    """The threat model of a recipe."""

    norm: str
    eps: Radius


class RecipeStage(Entry):
    """A stage of a recipe."""

    kind: str
    name: str | None = None
    of: list[str] | None = None


class RecipeSource(Entry):
    """Where a recipe comes from."""

    reported: dict[str, dict[str, float]] | None = None


RECIPE: dict[str, TypeAdapter[Any]] = {
    "name": TypeAdapter(str),
    "about": TypeAdapter(str | None),
    "threat": TypeAdapter(RecipeThreat | None),
    "stages": TypeAdapter(list[RecipeStage]),
    "source": TypeAdapter(RecipeSource | None),
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


def epochs(lines: Mapping[int, Any], where: str, told: Told) -> list[Epoch]:
    """The lines of a log that fit; of one that is there twice, the last."""
    found: dict[tuple[str, int], Epoch] = {}
    for number, line in lines.items():
        try:
            epoch = parsed(Epoch, line, f"{where}:{number}")
        except CheckpointError as error:
            told(str(error))
            continue
        place = (epoch.stage, epoch.epoch)
        if place in found:
            told(f"an earlier line of epoch {epoch.epoch} of {epoch.stage}, which {where}:{number} repeats")
        found[place] = epoch
    return list(found.values())
