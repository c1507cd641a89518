"""What pruning costs beyond the mean: classes that lose more than others, changed answers, calibration."""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 15


def per_class(label: Tensor, right: Tensor, classes: int) -> Tensor:
    """(K,) float64: share of each class's images for which `right` is true; NaN for a class without images.

    Args:
        label: (N,) class ids.
        right: (n,) bool, classified correctly or surviving an attack, for the first n of the images.
        classes: K.
    """
    label = label[: len(right)]
    total = torch.bincount(label, minlength=classes)
    return torch.bincount(label, weights=right.double(), minlength=classes) / total


def flips(label: Tensor, before: Tensor, after: Tensor) -> dict[str, Tensor]:
    """Where the answers (N,) of two networks differ, (N,) bool: `changed`, `lost` (right before, not after), `won`."""
    was, now = before == label, after == label
    return {"changed": before != after, "lost": was & ~now, "won": ~was & now}


def calibration_error(confidence: Tensor, right: Tensor, bins: int = BINS) -> float:
    """Expected calibration error (arXiv:1706.04599, eq. 3): mean gap between confidence and accuracy, over equal bins.

    Args:
        confidence: (N,) largest softmax probability, in [0, 1].
        right: (N,) bool.
        bins: equally wide intervals of confidence, each open below and closed above.
    """
    place = (confidence.double() * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.bincount(place, weights=confidence.double() - right.double(), minlength=bins)
    return gap.abs().sum().item() / len(right)
