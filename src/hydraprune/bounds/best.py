"""The best of several bounds, none of which is always the tightest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hydraprune.bounds import BOUNDS
from hydraprune.bounds.base import Analysis, Bounds
from hydraprune.bounds.methods import IBP, Crown, CrownIBP, Symbolic
from hydraprune.bounds.statistics import Statistics
from hydraprune.core.threat import Box


@dataclass(frozen=True)
class _Together(Analysis):
    """Several analyses of the same boxes: what any of them excludes is excluded."""

    parts: tuple[Analysis, ...] = ()

    @property
    def boxes(self) -> dict[str, Box]:
        each = [part.boxes for part in self.parts]
        return {name: _common([boxes[name] for boxes in each]) for name in each[0]}

    def margins(self, y: Tensor) -> Tensor:
        return torch.stack([part.margins(y) for part in self.parts]).amax(0)

    def interval_margins(self, y: Tensor) -> Tensor:
        return torch.stack([part.interval_margins(y) for part in self.parts]).amax(0)

    def logits(self) -> Box:
        return _common([part.logits() for part in self.parts])


class Best(Bounds):
    """The tightest end that any of several bounds finds, logit by logit and margin by margin.

    Verification asks the dearer ones only about images that those before them leave undecided.

    Args:
        methods: the bounds, the cheapest first.
    """

    kind: Literal["best"] = "best"
    methods: tuple[Annotated[Bounds, BOUNDS], ...] = Field(
        default=(IBP(), CrownIBP(), CrownIBP(slope="zero"), Symbolic(), Crown()), min_length=1
    )

    @property
    def name(self) -> str:
        default = type(self).model_fields["methods"].default
        return "best" if self.methods == default else "+".join(method.name for method in self.methods)

    def deciding(self) -> dict[str, Any]:
        return {"kind": self.kind, "methods": [method.deciding() for method in self.methods]}

    def analyse(self, model: nn.Module, box: Box, statistics: Statistics | None = None) -> Analysis:
        parts = tuple(method.analyse(model, box, statistics) for method in self.methods)
        return _Together(parts[0].tape, parts=parts)


def _common(boxes: Sequence[Box]) -> Box:
    lower, upper = zip(*boxes, strict=True)
    return Box(torch.stack(lower).amax(0), torch.stack(upper).amin(0))
