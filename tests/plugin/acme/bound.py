"""A bound."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from hydraprune.bounds.base import Analysis, Bounds
from hydraprune.bounds.methods import Crown
from hydraprune.bounds.statistics import Statistics
from hydraprune.core.threat import Box


class SmallestBall(Bounds):
    """Margins of two kinds of lower lines, the better one of each."""

    kind: Literal["smallest-ball"] = "smallest-ball"

    def analyse(self, model: nn.Module, box: Box, statistics: Statistics | None = None) -> Analysis:
        return Crown().analyse(model, box, statistics)

    def margins(self, model: nn.Module, box: Box, y: Tensor, statistics: Statistics | None = None) -> Tensor:
        return (
            super().margins(model, box, y, statistics).maximum(Crown(slope="zero").margins(model, box, y, statistics))
        )
