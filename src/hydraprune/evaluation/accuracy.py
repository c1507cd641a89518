"""The referee: which images does a network classify as their labels?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hydraprune.core.batches import checked, logits_of, one_pass
from hydraprune.core.errors import EvaluationError
from hydraprune.core.network import device_of, dtype_of
from hydraprune.core.plain import evaluating, once


def clean_accuracy(model: nn.Module, batches: Any) -> float:
    """Share of the images classified correctly, in [0, 1], in evaluation mode and the model's own precision.

    The model may be parametrized; its modes, gradients and buffers are left as they were.

    Args:
        model: returns logits (B, K).
        batches: images in [0, 1] and labels, in any form that `evaluate` takes.

    Raises:
        SpecError: for a model that does not return logits, or has tensors without values.
        DataError: for images outside [0, 1] or that do not fit, or labels that the network has no class for.
        EvaluationError: without images, or when logits are not finite.
    """
    device = device_of(model)
    verdicts = []
    with evaluating(model), once(model):
        for batch in one_pass(batches):
            x, y = checked(batch, device, dtype_of(model))
            verdicts.append(judge(model, x, y))
    return share(gathered(verdicts))


def judge(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(B,) bool: where the largest logit of `x` (B, C, H, W) is that of `y` (B,); errors are those of `classify`."""
    return classify(model, x, y).argmax(1) == y


def classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Logits (B, K) of `x` (B, C, H, W); `y` (B,) only for the range of labels.

    Raises:
        SpecError, DataError: as `core.network.logits_of` says.
        EvaluationError: for logits that are not finite.
    """
    logits = logits_of(model, x, y)
    if not logits.isfinite().all():
        raise EvaluationError("the network returns NaN or infinite logits; was its training stable?")
    return logits


def gathered(verdicts: list[Tensor]) -> Tensor:
    """All verdicts in one tensor on the CPU; EvaluationError if there is none."""
    if not verdicts:
        raise EvaluationError("no images to evaluate; give at least one batch")
    return torch.cat(verdicts).cpu()


def share(verdict: Tensor) -> float:
    """Share of True, in [0, 1]."""
    return verdict.double().mean().item()
