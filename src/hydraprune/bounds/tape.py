"""What a network does with boxes, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hydraprune.bounds.interval import Interval
from hydraprune.bounds.ops import Conv, Linear, MaxPool, Op
from hydraprune.core.threat import Box

IMAGES = "images"
"""Name of the first step."""


class Step(NamedTuple):
    """One operation (None: the images themselves), the steps that it reads, and a box around its outputs."""

    op: Op | None
    inputs: tuple[str, ...]
    box: Interval


class Tape:
    """The steps of a network on the images in `box`, by name and in order. The last one gives the logits."""

    def __init__(self, box: Box) -> None:
        self.steps = {IMAGES: Step(None, (), Interval(lower=box.lower, upper=box.upper))}
        self.last = IMAGES

    def append(self, name: str, op: Op, inputs: tuple[str, ...]) -> Interval:
        """Do one more operation; returns the box around its outputs."""
        box = op.interval(*(self.steps[source].box for source in inputs))
        self.steps[name] = Step(op, inputs, box)
        self.last = name
        return box

    def exact(self, name: str, mixing: int = 1) -> bool:
        """Whether interval arithmetic is exact up to this step: at most one layer mixes, the rest is elementwise."""
        op, inputs, _ = self.steps[name]
        if isinstance(op, Linear | Conv):
            return mixing > 0 and self.exact(inputs[0], mixing - 1)
        return op is None or (op.elementwise and self.exact(inputs[0], mixing))

    def pools(self) -> bool:
        """Whether some step is max pooling, whose lower and upper lines differ for every slope."""
        return any(isinstance(step.op, MaxPool) for step in self.steps.values())

    def before_last(self) -> str:
        """The input of the last layer, or the last step where no layer comes last."""
        name = self.last
        while (op := self.steps[name].op) is not None and op.elementwise:
            name = self.steps[name].inputs[0]
        return self.steps[name].inputs[0] if isinstance(op, Linear | Conv) else self.last


def joined(tapes: Sequence[Tape]) -> Tape:
    """One tape of a network on the images of several."""
    steps = {
        name: step._replace(box=Interval.joined([tape.steps[name].box for tape in tapes]))
        for name, step in tapes[0].steps.items()
    }
    images = steps[IMAGES].box
    whole = Tape(Box(images.lower, images.upper))
    whole.steps, whole.last = steps, tapes[0].last
    return whole
