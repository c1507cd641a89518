"""SABR: intervals on a small box around an attacked image (Müller et al., arXiv:2210.04871)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from hydraprune.bounds.base import Analysis
from hydraprune.bounds.interval import Interval
from hydraprune.bounds.ops import Op, ReLU
from hydraprune.bounds.run import run
from hydraprune.bounds.tape import Tape
from hydraprune.core.objective import Loss
from hydraprune.core.spec import Number
from hydraprune.core.threat import Box
from hydraprune.objectives.certified import Certified, Step, full_precision, robust_loss


class SABR(Certified):
    """Cross-entropy of the worst logits in the box of `tau` times the radius around what PGD finds (section 4).

    The small box is moved inside the box of the threat. It leaves out most images, so the loss bounds nothing, and
    the network has to be verified afterwards.

    Args:
        tau: radius of the small box as a share of the whole, in (0, 1]; the authors take 0.1 for CIFAR-10 at 2/255 and
            0.9 at 8/255. 1 is `ibp`.
        steps: steps of the attack.
        shrink: factor of the upper ends of ReLUs whose sign is open; the authors take 0.8 at 2/255.

    Sample: `objective: {kind: sabr, tau: 0.1, shrink: 0.8, ramp: {start: 1, length: 80}}`
    """

    kind: Literal["sabr"] = "sabr"
    tau: Number = Field(default=0.1, gt=0, le=1)
    steps: int = Field(default=8, ge=1)
    shrink: Number = Field(default=1.0, gt=0, le=1)

    def robust(self, step: Step) -> Loss:
        small = self.small_box(step.box, step.attacked(step.threat, self.steps))
        with full_precision(step.batch.x):
            tape = run(step.model, _Shrinking(small, self.shrink), step.statistics)
            return Loss(robust_loss(Analysis(tape).interval_margins(step.batch.y), step.batch.y), {})

    def small_box(self, box: Box, attacked: Tensor) -> Box:
        """The part of `box` that is bounded, around the images `attacked` (B, C, H, W) if there is room."""
        radius = self.tau * (box.upper - box.lower) / 2
        center = attacked.clamp(box.lower + radius, box.upper - radius)
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
