"""The contract of a bound: certified ends of logits and margins for all images of a box."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hydraprune.bounds.backward import Backward
from hydraprune.bounds.ops import ReLU, Slope
from hydraprune.bounds.statistics import Statistics
from hydraprune.bounds.tape import Tape
from hydraprune.core.spec import Spec
from hydraprune.core.threat import Box


@dataclass(frozen=True)
class Analysis:
    """A network that was run on boxes: everything is read from the one run, with gradients.

    Args:
        slope: lower lines of the linear bounds on the logits; None takes interval arithmetic for them.
        chunk: rows of linear bounds computed at once.
    """

    tape: Tape
    slope: Slope | None
    chunk: int

    @property
    def boxes(self) -> dict[str, Box]:
        """What enters each ReLU, (B, *shape), by the name of the ReLU's step in the traced graph, in order."""
        steps = self.tape.steps
        entered = {name: steps[step.inputs[0]].box for name, step in steps.items() if isinstance(step.op, ReLU)}
        return {name: Box(box.lower, box.upper) for name, box in entered.items()}

    def margins(self, y: Tensor) -> Tensor:
        """(B, K) lower bounds of f_y - f_j, 0 at j = y, for labels `y` (B,)."""
        if self.slope is None:
            return self.interval_margins(y)
        return self._backward(self.slope).functions(self._differences(y))

    def interval_margins(self, y: Tensor) -> Tensor:
        """The same from the boxes alone, with the last layer taken into the margins (arXiv:1810.12715, section 3)."""
        # One layer back, the slope is of no concern.
        return self._backward("same").functions(self._differences(y), floor=self.tape.before_last())

    def logits(self) -> Box:
        """Ends of the logits, each (B, K)."""
        if self.slope is None:
            last = self.tape.steps[self.tape.last].box
            return Box(last.lower, last.upper)
        return self._backward(self.slope).neurons(self.tape.last)

    def _differences(self, y: Tensor) -> Tensor:
        """(B, K, K) rows e_y - e_j."""
        logits = self.tape.steps[self.tape.last].box.center
        classes = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
        return classes[y].unsqueeze(1) - classes

    def _backward(self, slope: Slope) -> Backward:
        return Backward(self.tape, slope, self.chunk)


class Bounds(Spec, ABC):
    """A way to bound a network over boxes; sound for every box, differentiable in the network's tensors."""

    kind: str

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
