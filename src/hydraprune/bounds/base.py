"""The contract of a bound: certified ends of logits and margins for all images of a box."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hydraprune.bounds.backward import Backward
from hydraprune.bounds.ops import ReLU, Slope
from hydraprune.bounds.statistics import Statistics
from hydraprune.bounds.tape import IMAGES, Tape
from hydraprune.core.spec import Spec
from hydraprune.core.threat import Box


@dataclass(frozen=True)
class Analysis:
    """A network that was run on boxes: everything is read from the one run, with gradients.

    Args:
        slope: lower lines of the linear bounds on the logits; None takes interval arithmetic for them.
        chunk: see `Chunk`.
    """

    tape: Tape
    slope: Slope | None = None
    chunk: int | None = None

    @property
    def classes(self) -> int:
        """K."""
        return self.tape.steps[self.tape.last].box.shape[1]

    @property
    def boxes(self) -> dict[str, Box]:
        """What enters each ReLU, (B, *shape), in order, by its module (with a `+` for every earlier call)."""
        steps = self.tape.steps
        entered = {name: steps[step.inputs[0]].box for name, step in steps.items() if isinstance(step.op, ReLU)}
        return {name: Box(box.lower, box.upper) for name, box in entered.items()}

    def margins(self, y: Tensor) -> Tensor:
        """(B, K) lower bounds of f_y - f_j, 0 at j = y, for labels `y` (B,)."""
        if self.slope is None:
            return self.interval_margins(y)
        return self._margins(y, Backward(self.tape, self.slope, self.chunk))

    def interval_margins(self, y: Tensor) -> Tensor:
        """The same from the boxes alone, the last layer being taken into the margins (arXiv:1810.12715, section 3)."""
        # One layer has no slope.
        return self._margins(y, Backward(self.tape, "same", self.chunk), self.tape.before_last())

    def _margins(self, y: Tensor, backward: Backward, floor: str = IMAGES) -> Tensor:
        logits = self.tape.steps[self.tape.last].box.center
        classes = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
        others = torch.arange(logits.shape[1] - 1, device=logits.device).expand(len(y), -1)
        others = others + (others >= y[:, None])
        lower = backward.functions(classes[y].unsqueeze(1) - classes[others], floor)
        return torch.zeros_like(logits).scatter(1, others, lower)

    def logits(self) -> Box:
        """Ends of the logits, each (B, K)."""
        if self.slope is None:
            last = self.tape.steps[self.tape.last].box
            return Box(last.lower, last.upper)
        return Backward(self.tape, self.slope, self.chunk).neurons(self.tape.last)


class Bounds(Spec, ABC):
    """A way to bound a network over boxes; sound for every box, differentiable in the network's tensors."""

    kind: str

    @property
    def name(self) -> str:
        """What tables call it, its lower lines included unless they are those of CROWN: `crown-ibp`, `crown-zero`."""
        slope = getattr(self, "slope", "adaptive")
        return self.kind if slope == "adaptive" else f"{self.kind}-{slope}"

    def deciding(self) -> dict[str, Any]:
        """The settings that its bounds depend on, JSON-ready: all but those of memory."""
        return {name: value for name, value in self.plain().items() if name != "chunk"}

    @abstractmethod
    def analyse(self, model: nn.Module, box: Box, statistics: Statistics | None = None) -> Analysis:
        """Run `model` on the images of `box`, each end (B, ...), with the weights that its layers have now.

        Args:
            statistics: of batch norms in training mode, from `batch_statistics`. Dropout counts as in evaluation mode.

        Raises:
            SpecError: if the model cannot be traced or has an operation without bounds; it is named.
        """

    def margins(self, model: nn.Module, box: Box, y: Tensor, statistics: Statistics | None = None) -> Tensor:
        """(B, K) lower bounds of f_y - f_j over the box, 0 at j = y, for labels `y` (B,)."""
        return self.analyse(model, box, statistics).margins(y)

    def logits(self, model: nn.Module, box: Box, statistics: Statistics | None = None) -> Box:
        """Ends of the logits over the box, each (B, K)."""
        return self.analyse(model, box, statistics).logits()
