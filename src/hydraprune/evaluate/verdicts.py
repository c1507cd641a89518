"""Verdicts image by image, and the file that keeps them, so that later evaluations can join and killed ones go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hydraprune.core.errors import CheckpointError
from hydraprune.core.files import load_tensors, save_tensors
from hydraprune.core.results import WORST, Record
from hydraprune.core.threat import ThreatModel
from hydraprune.evaluate.accuracy import share

GROUPS = ("survived", "distance", "example")
IMAGES = ("label", "prediction", "confidence")
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


def save(path: Path, found: Evaluation, meta: dict[str, Any], *, examples: bool = False) -> None:
    """Write verdicts, with `meta` beside the threat and the number of images; examples only where asked for."""
    tensors = {"label": found.label, "prediction": found.prediction, "confidence": found.confidence}
    tensors |= {f"survived/{name}": verdict for name, verdict in found.survived.items()}
    tensors |= {f"distance/{name}": length for name, length in found.distance.items()}
    if examples:
        tensors |= {f"example/{name}/{key}": v for name, group in found.example.items() for key, v in group.items()}
    threat = found.threat.plain() if found.threat is not None else None
    save_tensors(path, tensors, meta | {"threat": threat, "samples": len(found.label), "seconds": found.seconds})


def load(path: Path) -> tuple[Evaluation, dict[str, Any]]:
    """What `save` wrote.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    tensors, meta = load_tensors(path)
    groups: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
    for key, value in tensors.items():
        group, _, name = key.partition("/")
        if group == "example":
            name, _, part = name.rpartition("/")
            groups[group].setdefault(name, {})[part] = value
        elif group in groups:
            groups[group][name] = value
    survived, distance, example = (groups[group] for group in GROUPS)
    seconds, threat = meta.get("seconds"), meta.get("threat")
    if not (_whole(tensors, survived, distance) and isinstance(seconds, int | float)):
        raise CheckpointError(f"{path} holds no verdicts on images; remove it, and measure again")
    label, prediction, confidence = (tensors[key] for key in IMAGES)
    adversary = ThreatModel.parse(threat, str(path)) if threat else None
    return Evaluation(label, prediction, confidence, survived, distance, example, adversary, seconds), meta


def _whole(tensors: Mapping[str, Tensor], survived: Mapping[str, Tensor], distance: Mapping[str, Tensor]) -> bool:
    """Whether they are verdicts on the same images."""
    if not tensors.keys() >= set(IMAGES):
        return False
    label, prediction, confidence = (tensors[key] for key in IMAGES)
    count, kinds = label.numel(), {"label": torch.int64, "prediction": torch.int64, "confidence": torch.float32}
    every = all(tensors[key].dtype == kind and tensors[key].shape == (count,) for key, kind in kinds.items())
    some = [(v, torch.bool) for v in survived.values()] + [(v, torch.float32) for v in distance.values()]
    fitting = all(v.dtype == kind and v.dim() == 1 and 0 < len(v) <= count for v, kind in some)
    classes = count > 0 and all(int(v.min()) >= 0 and int(v.max()) < CLASSES for v in (label, prediction))
    return every and fitting and classes and bool(((confidence >= 0) & (confidence <= 1)).all())
