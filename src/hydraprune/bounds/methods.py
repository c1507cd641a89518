"""The bounds: interval arithmetic, and linear bounds on boxes of either kind."""

from __future__ import annotations

from typing import Literal

from torch import nn

from hydraprune.bounds.backward import Backward, Chunk
from hydraprune.bounds.base import Analysis, Bounds
from hydraprune.bounds.forward import Forward
from hydraprune.bounds.ops import Slope
from hydraprune.bounds.run import run
from hydraprune.bounds.statistics import Statistics
from hydraprune.bounds.tape import Tape, joined
from hydraprune.bounds.zonotope import TooLargeError
from hydraprune.core.threat import Box


class IBP(Bounds):
    """Interval bound propagation (arXiv:1810.12715), for about the price of two passes of the network.

    The objective that trains with it is `objectives.ibp.IBP`.
    """

    kind: Literal["ibp"] = "ibp"

    def analyse(self, model: nn.Module, box: Box, statistics: Statistics | None = None) -> Analysis:
        return Analysis(run(model, Tape(box), statistics))


class CrownIBP(Bounds):
    """Boxes by interval arithmetic, logits and margins by one way back through them (arXiv:1906.06316).

    Not always tighter than IBP: a network that was trained with intervals is best judged by them. The objective that
    trains with it is `objectives.crown_ibp.CrownIBP`.

    Args:
        slope: lower lines of unstable ReLUs; `adaptive` are those of CROWN.
        chunk: rows of linear bounds computed at once; None chooses by the device.
    """

    kind: Literal["crown-ibp"] = "crown-ibp"
    slope: Slope = "adaptive"
    chunk: Chunk = None

    def analyse(self, model: nn.Module, box: Box, statistics: Statistics | None = None) -> Analysis:
        return Analysis(run(model, Tape(box), statistics), self.slope, self.chunk)


class Crown(Bounds):
    """Linear bounds throughout (arXiv:1811.00866): one way back for each neuron that enters a ReLU.

    Args:
        slope: lower lines of unstable ReLUs.
        chunk: rows of linear bounds computed at once; None chooses by the device.
    """

    kind: Literal["crown"] = "crown"
    slope: Slope = "adaptive"
    chunk: Chunk = None

    def analyse(self, model: nn.Module, box: Box, statistics: Statistics | None = None) -> Analysis:
        tape = Tape(box)
        run(model, tape, statistics, Backward(tape, self.slope, self.chunk))
        return Analysis(tape, self.slope, self.chunk)


class Symbolic(Bounds):
    """Symbolic intervals as in MixTrain (arXiv:1811.02625).

    Every neuron is a linear function of the pixels and of one error for each open ReLU (a zonotope). They are carried
    forward along a sequence of layers as small windows, of so many images at once that a layer has no more than
    `zonotope.MOST` coefficients (128 MiB in float32; computing it takes about five times that, and with gradients about
    four times that is kept of each layer). Where one image has more, and behind skip connections, the way back between
    parallel lines gives the same numbers. At max pooling, where zonotopes differ among themselves, the bound is that of
    CROWN.

    Args:
        chunk: take the way back only, with so many rows of linear bounds at once, to bound the memory more tightly.
    """

    kind: Literal["symbolic"] = "symbolic"
    chunk: Chunk = None

    def analyse(self, model: nn.Module, box: Box, statistics: Statistics | None = None) -> Analysis:
        return Analysis(self._tape(model, box, statistics), "same", self.chunk)

    def _tape(self, model: nn.Module, box: Box, statistics: Statistics | None) -> Tape:
        tape, images = Tape(box), len(box.lower)
        forward = Forward(tape, alone=images == 1) if self.chunk is None else None
        try:
            return run(model, tape, statistics, Backward(tape, "same", self.chunk, forward))
        except TooLargeError as error:
            few = max(1, min(images - 1, images // error.times))
            pieces = zip(box.lower.split(few), box.upper.split(few), strict=True)
            return joined([self._tape(model, Box(*piece), statistics) for piece in pieces])
