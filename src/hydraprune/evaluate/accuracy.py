"""The referee: which images does a network classify as their labels?"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from hydraprune.core.errors import DataError, EvaluationError
from hydraprune.core.objective import Batch
from hydraprune.core.plain import evaluating, once


def clean_accuracy(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Share of the images classified correctly, in [0, 1], in evaluation mode and the caller's precision.

    The model may be parametrized; its modes, gradients and buffers are left as they were.

    Raises:
        DataError: for images outside [0, 1] or labels that the network has no class for.
        EvaluationError: without images, or when logits are not finite.
    """
    device = next(model.parameters()).device
    verdicts = []
    with evaluating(model), once(model):
        for batch in batches:
            x, y = checked(batch, device)
            verdicts.append(judge(model, x, y))
    return share(gathered(verdicts))


def checked(batch: Batch, device: torch.device) -> Batch:
    """`batch` on `device`.

    Raises:
        DataError: unless it holds float images (B, C, H, W) in [0, 1] and as many int64 labels.
    """
    x, y = batch.x.to(device), batch.y.to(device)
    if x.dim() != 4 or y.shape != x.shape[:1] or len(x) == 0:
        raise DataError(f"expected images (B, C, H, W) and labels (B,), got {tuple(x.shape)} and {tuple(y.shape)}")
    if not x.is_floating_point() or y.dtype != torch.int64:
        raise DataError(f"expected float images and int64 labels, got {x.dtype} and {y.dtype}")
    lowest, highest = x.aminmax()
    if not (lowest >= 0 and highest <= 1):
        raise DataError(
            f"pixels must lie in [0, 1], found {lowest:g} to {highest:g}; make normalisation a layer of the network"
        )
    return Batch(x, y)


def judge(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(B,) bool: where the largest logit of `x` (B, C, H, W) is that of `y` (B,).

    Raises:
        DataError: for a label that the network has no class for.
        EvaluationError: for logits that are not (B, K), or not finite.
    """
    return classify(model, x, y).argmax(1) == y


def classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Logits (B, K) of `x` (B, C, H, W), checked as `judge` says; `y` (B,) only for the range of labels."""
    with torch.no_grad():
        logits = model(x)
    if logits.dim() != 2 or len(logits) != len(x):
        raise EvaluationError(f"expected logits ({len(x)}, classes), the network returns {tuple(logits.shape)}")
    if not logits.isfinite().all():
        raise EvaluationError("the network returns NaN or infinite logits; was its training stable?")
    lowest, highest = y.aminmax()
    if lowest < 0 or highest >= logits.shape[1]:
        raise DataError(f"labels run from {lowest} to {highest}, but the network has {logits.shape[1]} classes")
    return logits


def gathered(verdicts: list[Tensor]) -> Tensor:
    """All verdicts in one tensor on the CPU; EvaluationError if there is none."""
    if not verdicts:
        raise EvaluationError("no images to evaluate; give at least one batch")
    return torch.cat(verdicts).cpu()


def share(verdict: Tensor) -> float:
    """Share of True, in [0, 1]."""
    return verdict.double().mean().item()
