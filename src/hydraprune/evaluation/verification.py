"""Verified accuracy: which images no adversary can move to another class, by certified bounds on the network."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from hydraprune.bounds import BOUNDS, Bounds, margin_bounds
from hydraprune.bounds.best import Best
from hydraprune.bounds.certify import Method, require_boxes
from hydraprune.core.batches import checked, one_pass
from hydraprune.core.errors import EvaluationError, SpecError
from hydraprune.core.fingerprint import fingerprint
from hydraprune.core.network import device_of
from hydraprune.core.plain import plain_copy
from hydraprune.core.precision import exact
from hydraprune.core.results import Verified
from hydraprune.core.threat import ThreatModel
from hydraprune.evaluation.accuracy import classify
from hydraprune.evaluation.records import ImageRecord, Ledger, network_key

Precision = Literal["float64", "float32"]

TOLERANCE = 1e-5
"""What float32 may lose of a margin, as a share of 1 + the largest margin; some 2e-6 were seen."""


BEYOND = 1e30
"""A mean margin that no table can show: of a network whose weights have run away."""


class VerifiedImage(ImageRecord):
    """One line of the file that `verify` writes.

    Args:
        verified: whether the image is classified as its label whatever the adversary does.
        margin: lower bound of the label's logit over every other one; None for a misclassified image, which is not
            bounded, and for a bound that is not finite.
        tolerance: what float32 may lose of the margin.
    """

    verified: bool
    margin: float | None = None
    tolerance: float = 0.0


class Verification(NamedTuple):
    """`records`: one for each image, in the order of the data. `summary`: their figures."""

    records: list[VerifiedImage]
    summary: Verified


def verify(
    model: nn.Module,
    data: Any,
    threat: ThreatModel | Mapping[str, Any],
    method: Method = "best",
    *,
    precision: Precision = "float64",
    path: Path | str | None = None,
    progress: Callable[[VerifiedImage], None] | None = None,
) -> Verification:
    """Prove for each image that every admissible one near it is classified as its label.

    An image is verified if it is classified correctly and its margin is above zero, strictly; in float32, above the
    `tolerance` of its record. Bounds are computed for images that are classified correctly, on a plain copy in
    evaluation mode, so the model keeps its modes, gradients, buffers and random state.

    Args:
        model: returns logits (B, K); traceable; may be parametrized, in any mode, on any device.
        data: images in [0, 1] and labels, in any form that `evaluate` takes; a batch is bounded at once.
        threat: of norm linf, or its settings.
        method: a bound, its name, or its name and settings. `best` takes the best of several, the dearer ones only for
            images that are still undecided.
        precision: of the copy and its bounds. They are not rounded outward, which matters below some 1e-13 in float64.
        path: a file of JSON lines to write, or to continue where a killed call stopped; a batch is written at once.
        progress: called with every record, those found in the file included.

    Raises:
        SpecError: for another norm or precision, or a model that has no bounds: it cannot be traced, or has an unknown
            operation.
        DataError: for images outside [0, 1] or that do not fit, or labels that the network has no class for.
        EvaluationError: without images, for logits that are not finite, or if the disk refuses.
        CheckpointError: if `path` holds records of another network, other images, threat or method, or no records.
    """
    threat = ThreatModel.make(threat, "threat")
    require_boxes(threat)
    if precision not in get_args(Precision):
        raise SpecError(f"precision is {precision!r}; proofs are made in {' or '.join(get_args(Precision))}")
    bound = BOUNDS.make(method, "method")
    device, dtype = device_of(model), getattr(torch, precision)
    net = plain_copy(model).eval().requires_grad_(False).to(dtype)
    path = None if path is None else Path(path)
    ledger = Ledger(VerifiedImage, path, network_key(model), verified_how(bound, threat, precision))
    records: list[VerifiedImage] = []
    for batch in one_pass(data):
        x, y = checked(batch, device, dtype)
        first, labels = len(records), y.tolist()
        keys = [ledger.keys(image, label) for image, label in zip(x, labels, strict=True)]
        found = {i: record for i, key in enumerate(keys) if (record := ledger.find(first + i, key))}
        new = [i for i in range(len(x)) if i not in found]
        if new:
            for i, verdict in zip(new, _verdicts(net, x[new], y[new], threat, bound, precision), strict=True):
                found[i] = VerifiedImage(index=first + i, label=labels[i], **keys[i], **verdict)
                ledger.add(found[i])
        for _, record in sorted(found.items()):
            records.append(record)
            if progress:
                progress(record)
    if not records:
        raise EvaluationError("no images to verify; give at least one batch")
    return Verification(records, summary(records, precision))


def verified_how(bound: Bounds, threat: ThreatModel, precision: Precision) -> str:
    """The fingerprint of what a proof depends on, beside network and image."""
    return fingerprint(bound=bound.deciding(), threat=threat.plain(), precision=precision)


def summary(records: Sequence[VerifiedImage], precision: Precision) -> Verified:
    """Figures of a verified data set."""
    margins = {r.index: r.margin for r in records if r.margin is not None}
    mean = fmean(margins.values()) if margins else None
    return Verified(
        samples=len(records),
        precision=precision,
        clean_accuracy=fmean(r.prediction == r.label for r in records),
        verified_accuracy=fmean(r.verified for r in records),
        mean_margin=mean if mean is not None and abs(mean) < BEYOND else None,
        close=sum(abs(margins[r.index]) <= r.tolerance for r in records if r.index in margins),
    )


@torch.no_grad()
def _verdicts(
    net: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, bound: Bounds, precision: Precision
) -> list[dict[str, Any]]:
    """What has to be computed for the record of each image."""
    began = time.perf_counter()
    with exact(), torch.autocast(x.device.type, enabled=False):
        logits = classify(net, x, y)
    prediction = logits.argmax(1)
    lower = torch.full_like(logits, -torch.inf)
    todo = (prediction == y).nonzero().squeeze(1)
    seconds = torch.full((len(x),), (time.perf_counter() - began) / len(x), device=x.device)
    for part in bound.methods if isinstance(bound, Best) else [bound]:
        if len(todo):
            began = time.perf_counter()
            # fmax: a bound that is not a number proves nothing.
            lower[todo] = lower[todo].fmax(margin_bounds(net, x[todo], y[todo], threat, part))
            _, proved, _ = _judged(lower[todo], y[todo], precision)
            left = todo[~proved]
            seconds[todo] += (time.perf_counter() - began) / len(todo)
            todo = left
    margin, proved, tolerance = _judged(lower, y, precision)
    columns = (value.tolist() for value in (prediction, proved, margin, tolerance, seconds))
    return [
        {"prediction": p, "verified": v, "seconds": s} | ({"margin": m, "tolerance": t} if math.isfinite(m) else {})
        for p, v, m, t, s in zip(*columns, strict=True)
    ]


def _judged(lower: Tensor, y: Tensor, precision: Precision) -> tuple[Tensor, Tensor, Tensor]:
    """Least margin (n,), whether it suffices, and what float32 may lose of it, for margins (n, K)."""
    margin = lower.scatter(1, y[:, None], torch.inf).amin(1)
    tolerance = TOLERANCE * (1 + lower.abs().amax(1))
    return margin, margin > (tolerance if precision == "float32" else 0), tolerance
