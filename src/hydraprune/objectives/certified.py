"""What objectives over boxes are made of: the clean pass, the loss of margins, and training with bounds alone."""

from __future__ import annotations

from abc import ABC
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hydraprune.bounds import batch_statistics
from hydraprune.bounds.base import Analysis, Bounds
from hydraprune.bounds.statistics import Statistics
from hydraprune.core.objective import Batch, Context, Loss, Objective, accuracy
from hydraprune.core.spec import Number
from hydraprune.objectives.schedule import Ramp, follow
from hydraprune.objectives.warmup import warmup_loss


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


class OverBoxes(Objective, ABC):
    """`kappa * CE(f(x), y) + (1 - kappa) * CE(worst logits by bounds, y)`, natural while eps is 0.

    Args:
        ramp: how eps grows; at once by default.
        kappa_final: weight of the clean loss when eps is full; it starts at 1 and falls as eps grows. None leaves the
            clean loss out, as HYDRA does.
        warmup: weight of the regulariser of arXiv:2103.17268 at the start (there 0.5); it falls to 0 as eps grows.

    Raises:
        SpecError: where the threat is not `linf`, or the network has no bounds.

    Attributes:
        bound: what runs the network on the boxes.
    """

    bound: ClassVar[Bounds]
    ramp: Ramp = Ramp()
    kappa_final: Number | None = Field(default=None, ge=0, le=1)
    warmup: Number = Field(default=0.0, ge=0)

    def margins(self, analysis: Analysis, y: Tensor, share: float) -> Tensor:
        """(B, K) lower bounds of f_y - f_j, at this share of eps."""
        return analysis.interval_margins(y)

    def __call__(self, model: nn.Module, batch: Batch, ctx: Context) -> Loss:
        x, y = batch
        share = self.ramp.share(ctx.clock.epoch)
        threat = ctx.adversary(self.kind, "linf").scaled(share)
        logits, statistics = clean_pass(model, x)
        clean, right = F.cross_entropy(logits, y), accuracy(logits, y)
        metrics = {"accuracy": right, "eps": clean.new_tensor(threat.eps), "verified_accuracy": right}
        if threat.eps == 0:
            return Loss(clean, metrics)
        box = threat.box(x)
        with full_precision(x):
            analysis = self.bound.analyse(model, box, statistics)
            margins = self.margins(analysis, y, share)
            loss = robust_loss(margins, y)
            kappa = 0.0 if self.kappa_final is None else follow(share, self.kappa_final)
            if kappa > 0:
                loss = kappa * clean + (1 - kappa) * loss
            if self.warmup > 0 and share < 1:
                loss = loss + self.warmup * (1 - share) * warmup_loss(box, analysis.boxes.values())
        return Loss(loss, metrics | {"verified_accuracy": verified(margins)})
