"""Verdicts image by image, and the file that keeps them, so that later evaluations can join and killed ones go on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from hydraprune.core.errors import CheckpointError, SpecError
from hydraprune.core.results import WORST, Record
from hydraprune.core.spec import Count, Real, Spec
from hydraprune.core.tensors import load_tensors, save_tensors
from hydraprune.core.threat import ThreatModel
from hydraprune.evaluation.accuracy import share

GROUPS = ("survived", "distance", "example")
EXAMPLE = {"image", "adversarial", "label", "prediction", "adversarial_prediction"}
"""The tensors of an example."""
CLASSES = 2**20
"""More than any data set has: a class beyond is damage."""


@dataclass(frozen=True)
class Evaluation:
    """Verdicts per image, in the order of the batches, on the CPU.

    Attributes:
        label: (N,) int64.
        prediction: (N,) int64, on the images as they are.
        confidence: (N,) float32, the largest softmax probability there.
        survived: attack name -> (n,) bool, classified correctly before and after that attack, for the first n images.
        distance: minimum-norm attack -> (n,) float32, length of the smallest change that it found; 0 for an image that
            is misclassified as it is, infinity where it found none.
        example: attack name -> up to 12 images that it broke: `image`, `adversarial` (k, C, H, W), `label`,
            `prediction`, `adversarial_prediction` (k,).
        threat: the adversary.
        seconds: wall time.
    """

    label: Tensor
    prediction: Tensor
    confidence: Tensor
    survived: dict[str, Tensor]
    distance: dict[str, Tensor] = field(default_factory=dict)
    example: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    threat: ThreatModel | None = None
    seconds: float = 0.0

    @property
    def correct(self) -> Tensor:
        """(N,) bool, classified correctly as it is."""
        return self.prediction == self.label

    @property
    def clean_accuracy(self) -> float:
        """Share of the N images, in [0, 1]."""
        return share(self.correct)

    @property
    def robust_accuracy(self) -> dict[str, float]:
        """Attack name -> share of the images that it was run on, wrongly classified ones included, in [0, 1]."""
        return {name: share(survived) for name, survived in self.survived.items()}

    @property
    def worst_case(self) -> Tensor:
        """(n,) bool: what no attack breaks, for the first n images, which all attacks were run on."""
        verdicts = [self.correct, *self.survived.values()]
        fewest = min(len(verdict) for verdict in verdicts)
        return torch.stack([verdict[:fewest] for verdict in verdicts]).all(0)

    def security(self, radii: Tensor) -> dict[str, Tensor]:
        """Minimum-norm attack -> accuracy at each of the `radii` (R,), by one run at no radius in particular."""
        return {
            name: (distance[:, None] > radii.to(distance)).double().mean(0) for name, distance in self.distance.items()
        }

    def record(self, *, stage: str, pruner: str | None, kept: int, total: int, seed: int, **more: Any) -> Record:
        """The record of this evaluation; with several attacks it holds their union as the attack `worst-case`."""
        verdicts = dict(self.survived)
        if len(verdicts) > 1:
            verdicts[WORST] = self.worst_case
        return Record(
            stage=stage,
            pruner=pruner,
            sparsity=(total - kept) / total,
            kept=kept,
            total=total,
            clean_accuracy=self.clean_accuracy,
            robust_accuracy={name: share(verdict) for name, verdict in verdicts.items()},
            robust_samples={
                name: len(verdict) for name, verdict in verdicts.items() if len(verdict) < len(self.correct)
            },
            samples=len(self.correct),
            threat=self.threat,
            seed=seed,
            seconds=self.seconds,
            **more,
        )

    def only(self, names: set[str]) -> Evaluation:
        """The same images, with the verdicts of these attacks only."""
        groups: dict[str, Any] = {g: {n: v for n, v in getattr(self, g).items() if n in names} for g in GROUPS}
        return replace(self, **groups)


class Origin(Spec):
    """What verdicts were made from.

    Args:
        network: digest of the weights.
        images: digest of the test split.
        made: attack -> fingerprint of all that its verdicts depend on.
    """

    network: str | None = None
    images: str | None = None
    made: dict[str, str] = {}


class _Header(Origin):
    threat: ThreatModel | None
    samples: Annotated[Count, Field(ge=1)]
    seconds: Annotated[Real, Field(ge=0)]


def save(path: Path, found: Evaluation, origin: Origin, *, examples: bool = False) -> None:
    """Write verdicts and what they were made from; examples only where asked for."""
    tensors = {"label": found.label, "prediction": found.prediction, "confidence": found.confidence}
    tensors |= {f"survived/{name}": verdict for name, verdict in found.survived.items()}
    tensors |= {f"distance/{name}": length for name, length in found.distance.items()}
    if examples:
        tensors |= {f"example/{name}/{key}": v for name, group in found.example.items() for key, v in group.items()}
    header = _Header(**dict(origin), threat=found.threat, samples=len(found.label), seconds=found.seconds)
    save_tensors(path, tensors, header.plain())


def load(path: Path) -> tuple[Evaluation, Origin]:
    """What `save` wrote.

    Raises:
        CheckpointError: if the file is missing, damaged, or holds something else; it says what to do.
    """
    tensors, meta = load_tensors(path)
    try:
        header = _Header.parse(meta, str(path))
        found = _evaluation(tensors, header)
    except (SpecError, ValueError) as error:
        raise CheckpointError(f"{path} holds no verdicts ({error}); remove it: they are then found again") from None
    return found, Origin(network=header.network, images=header.images, made=header.made)


def _evaluation(tensors: dict[str, Tensor], header: _Header) -> Evaluation:
    """The verdicts in a file; a ValueError names what is not as it should be."""
    groups: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
    for key, value in tensors.items():
        group, _, name = key.partition("/")
        if group == "example":
            name, _, part = name.rpartition("/")
            groups[group].setdefault(name, {})[part] = value
        elif group in groups:
            groups[group][name] = value
    survived, distance, example = (groups[group] for group in GROUPS)
    whole = {"label": torch.int64, "prediction": torch.int64, "confidence": torch.float32}
    for name, dtype in whole.items():
        _like(tensors.get(name), name, dtype, header.samples, header.samples)
    for group, dtype in (("survived", torch.bool), ("distance", torch.float32)):
        for name, value in groups[group].items():
            _like(value, name, dtype, 0, header.samples)
    for name, parts in example.items():
        lengths = {part.shape[:1] for part in parts.values()}
        if parts.keys() != EXAMPLE or len(lengths) != 1 or torch.Size() in lengths:
            raise ValueError(f"the examples of {name} are not {', '.join(sorted(EXAMPLE))} of as many images")
    label, prediction, confidence = (tensors[name] for name in whole)
    if not all(int(classes.min()) >= 0 and int(classes.max()) < CLASSES for classes in (label, prediction)):
        raise ValueError("there is a class that no data set has")
    if not bool(((confidence >= 0) & (confidence <= 1)).all()):
        raise ValueError("there is a confidence outside of [0, 1]")
    return Evaluation(label, prediction, confidence, survived, distance, example, header.threat, header.seconds)


def _like(value: Tensor | None, name: str, dtype: torch.dtype, fewest: int, most: int) -> None:
    if value is None or value.dtype != dtype or value.dim() != 1 or not fewest <= len(value) <= most:
        raise ValueError(f"{name} is no {dtype} for {most} images")
