"""The bounds: interval arithmetic, and linear bounds on boxes of either kind."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from hydraprune.bounds.base import Analysis, Bounds
from hydraprune.bounds.ops import Slope
from hydraprune.bounds.run import run
from hydraprune.bounds.statistics import Statistics
from hydraprune.core.threat import Box

ROWS = 1024


class IBP(Bounds):
    """Interval bound propagation (arXiv:1810.12715): about two passes of the network."""

    kind: Literal["ibp"] = "ibp"

    def analyse(self, model: nn.Module, box: Box, statistics: Statistics | None = None) -> Analysis:
        return Analysis(run(model, box, statistics, None, ROWS), None, ROWS)


class CrownIBP(Bounds):
    """Interval boxes, and one way back for the logits or margins (arXiv:1906.06316).

    Args:
        slope: lower line of unstable ReLUs; `adaptive` is that of CROWN.
        chunk: rows computed at once.
    """

    kind: Literal["crown-ibp"] = "crown-ibp"
    slope: Slope = "adaptive"
    chunk: int = Field(ROWS, ge=1)

    def analyse(self, model: nn.Module, box: Box, statistics: Statistics | None = None) -> Analysis:
        return Analysis(run(model, box, statistics, None, self.chunk), self.slope, self.chunk)


class Crown(Bounds):
    """Linear bounds throughout (arXiv:1811.00866): a way back for every neuron that enters a ReLU.

    Args:
        slope: lower line of unstable ReLUs.
        chunk: rows computed at once.
    """

    kind: Literal["crown"] = "crown"
    slope: Slope = "adaptive"
    chunk: int = Field(ROWS, ge=1)

    def analyse(self, model: nn.Module, box: Box, statistics: Statistics | None = None) -> Analysis:
        return Analysis(run(model, box, statistics, self.slope, self.chunk), self.slope, self.chunk)


class Symbolic(Bounds):
    """Symbolic intervals of MixTrain (arXiv:1811.02625).

    They carry each neuron forward as a linear function of the pixels and of one error per unstable ReLU (a zonotope).
    Going back with parallel lines and parallel lines in every box gives the same numbers, without the matrix of all
    pixels by all neurons. The two differ at max pooling alone, where a zonotope would need a choice of its own.
    """

    kind: Literal["symbolic"] = "symbolic"
    chunk: int = Field(ROWS, ge=1)

    def analyse(self, model: nn.Module, box: Box, statistics: Statistics | None = None) -> Analysis:
        return Analysis(run(model, box, statistics, "same", self.chunk), "same", self.chunk)
