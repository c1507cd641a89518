"""SABR: intervals on a small box around an attacked image (Müller et al., arXiv:2210.04871)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hydraprune.bounds.base import Analysis
from hydraprune.bounds.interval import Interval
from hydraprune.bounds.ops import Op, ReLU
from hydraprune.bounds.run import run
from hydraprune.bounds.tape import Tape
from hydraprune.core.objective import Batch, Context, Loss, Objective, accuracy
from hydraprune.core.spec import Number
from hydraprune.core.threat import Box
from hydraprune.objectives.certified import clean_pass, full_precision, robust_loss
from hydraprune.objectives.pgd import attacked
from hydraprune.objectives.schedule import Ramp


class SABR(Objective):
    """Cross-entropy of the worst logits in the box of `tau` times the radius around what PGD finds (section 4).

    The small box is moved inside the box of the threat. It leaves out most images, so the loss bounds nothing, and
    the network has to be verified afterwards.

    Args:
        ramp: how eps grows; at once by default.
        tau: radius of the small box as a share of the whole, in (0, 1]; the authors take 0.1 for CIFAR-10 at 2/255 and
            0.9 at 8/255. 1 is `ibp`.
        steps: steps of the attack.
        shrink: factor of the upper ends of ReLUs whose sign is open; the authors take 0.8 at 2/255.

    Raises:
        SpecError: where the threat is not `linf`, or the network has no bounds.

    Sample: `objective: {kind: sabr, tau: 0.1, shrink: 0.8, ramp: {start: 1, length: 80}}`
    """

    kind: Literal["sabr"] = "sabr"
    ramp: Ramp = Ramp()
    tau: Number = Field(default=0.1, gt=0, le=1)
    steps: int = Field(default=8, ge=1)
    shrink: Number = Field(default=1.0, gt=0, le=1)

    def __call__(self, model: nn.Module, batch: Batch, ctx: Context) -> Loss:
        x, y = batch
        threat = ctx.adversary(self.kind, "linf").scaled(self.ramp.share(ctx.clock.epoch))
        logits, statistics = clean_pass(model, x)
        clean = F.cross_entropy(logits, y)
        metrics = {"accuracy": accuracy(logits, y), "eps": clean.new_tensor(threat.eps)}
        if threat.eps == 0:
            return Loss(clean, metrics)
        small = self.small_box(threat.box(x), attacked(model, batch, ctx, threat, self.steps, None, "uniform"))
        with full_precision(x):
            analysis = Analysis(run(model, _Shrinking(small, self.shrink), statistics))
            return Loss(robust_loss(analysis.interval_margins(y), y), metrics)

    def small_box(self, box: Box, images: Tensor) -> Box:
        """The part of `box` that is bounded, around `images` (B, C, H, W) if there is room."""
        radius = self.tau * (box.upper - box.lower) / 2
        center = images.clamp(box.lower + radius, box.upper - radius)
        return Box(center - radius, center + radius)


class _Shrinking(Tape):
    """Interval arithmetic that is too narrow on purpose: what leaves an open ReLU is `shrink` times its box."""

    def __init__(self, box: Box, shrink: float) -> None:
        super().__init__(box)
        self._shrink = shrink

    def append(self, name: str, op: Op, inputs: tuple[str, ...]) -> Interval:
        box = super().append(name, op, inputs)
        if isinstance(op, ReLU) and self._shrink < 1:
            entering = self.steps[inputs[0]].box
            factor = torch.where((entering.lower < 0) & (entering.upper > 0), self._shrink, 1.0).to(box.center)
            box = Interval(center=box.center * factor, radius=box.radius * factor)
            self.steps[name] = self.steps[name]._replace(box=box)
        return box
