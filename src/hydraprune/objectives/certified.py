"""What certified objectives share: the clean pass, the growing box, the loss of margins."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hydraprune.attacks.gradient import pgd
from hydraprune.bounds import batch_statistics
from hydraprune.bounds.statistics import Statistics
from hydraprune.core.errors import SpecError
from hydraprune.core.objective import Batch, Clock, Context, Loss, Objective
from hydraprune.core.threat import Box, ThreatModel
from hydraprune.objectives.schedule import Ramp


@dataclass(frozen=True)
class Step:
    """One training step after its clean pass.

    Attributes:
        threat: the adversary with the present eps, which is above 0.
        share: of the full eps that it is, in (0, 1].
        statistics: what the clean pass was normalised with.
        clean: cross-entropy of the clean pass.
    """

    model: nn.Module
    batch: Batch
    ctx: Context
    threat: ThreatModel
    share: float
    statistics: Statistics
    clean: Tensor

    @cached_property
    def box(self) -> Box:
        """All admissible images."""
        return self.threat.box(self.batch.x)

    def attacked(self, threat: ThreatModel, steps: int) -> Tensor:
        """What PGD from a random start makes of the images; `steps` times 2.5 / `steps` of the radius."""
        return pgd(
            self.ctx.frozen(self.model),
            self.batch.x,
            threat,
            lambda logits: F.cross_entropy(logits, self.batch.y, reduction="none"),
            steps=steps,
            step_size=2.5 * threat.eps / steps,
            start="uniform",
            rng=self.ctx.rng,
        )


class Certified(Objective, ABC):
    """Base of objectives over boxes: natural training until eps has begun to grow, then `robust`.

    Batch norm sees the clean images alone, once a step; bounds take its statistics from there, with gradient, and are
    computed in float32 whatever the autocast.

    Args:
        ramp: how eps grows; at once by default.

    Raises:
        SpecError: where the threat is not `linf`, or the network has no bounds.
    """

    ramp: Ramp = Ramp()

    accuracies: ClassVar[tuple[str, ...]] = ()
    """Metrics of `robust` that are the clean accuracy while eps is 0."""

    @abstractmethod
    def robust(self, step: Step) -> Loss:
        """The loss against the present box."""

    def share(self, clock: Clock) -> float:
        """Of the full eps, at this optimizer step."""
        return self.ramp.share(clock.epoch)

    def __call__(self, model: nn.Module, batch: Batch, ctx: Context) -> Loss:
        threat = ctx.adversary(self.kind)
        if threat.norm != "linf":
            raise SpecError(f"objective {self.kind!r} bounds boxes, not {threat.norm} balls; write `norm: linf`")
        share = self.share(ctx.clock)
        eps = share * threat.eps
        with batch_statistics(model) as statistics:
            logits = model(batch.x).float()
        clean = F.cross_entropy(logits, batch.y)
        accuracy = (logits.argmax(1) == batch.y).float().mean()
        metrics = {"accuracy": accuracy, "eps": clean.new_tensor(eps)}
        if eps == 0:
            return Loss(clean, metrics | dict.fromkeys(self.accuracies, accuracy))
        threat = threat.model_copy(update={"eps": eps})
        robust = self.robust(Step(model, batch, ctx, threat, share, statistics, clean))
        return Loss(robust.value, metrics | robust.metrics)


def robust_loss(margins: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of the worst logits that margins (B, K), lower bounds of f_y - f_j, leave open."""
    return F.cross_entropy(-margins, y)


def verified(margins: Tensor) -> Tensor:
    """The share of images whose margins (B, K) are above 0, strictly, but for the label's own."""
    return ((margins > 0).sum(1) == margins.shape[1] - 1).float().mean()


def full_precision(x: Tensor) -> torch.autocast:
    """A context without autocast on the device of `x`, for bounds."""
    return torch.autocast(x.device.type, enabled=False)
