"""What objectives over boxes are made of: the clean pass, and the loss of margins."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hydraprune.bounds import batch_statistics
from hydraprune.bounds.statistics import Statistics


def clean_pass(model: nn.Module, x: Tensor) -> tuple[Tensor, Statistics]:
    """Logits (B, K), float32, of images `x` (B, C, H, W), and the batch statistics that normalised them.

    It is the only pass that moves running statistics; bounds of the step take its own, with gradient.
    """
    with batch_statistics(model) as statistics:
        logits = model(x).float()
    return logits, statistics


def full_precision(x: Tensor) -> torch.autocast:
    """A context without autocast on the device of `x`, for bounds."""
    return torch.autocast(x.device.type, enabled=False)


def robust_loss(margins: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of the worst logits that margins (B, K), lower bounds of f_y - f_j, leave open."""
    return F.cross_entropy(-margins, y)


def verified(margins: Tensor) -> Tensor:
    """The share of images whose margins (B, K) are above 0, strictly, but for the label's own."""
    return ((margins > 0).sum(1) == margins.shape[1] - 1).float().mean()
