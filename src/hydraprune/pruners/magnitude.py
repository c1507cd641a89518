"""Magnitude pruning; with the uniform budget and a pre-trained robust network it is the paper's LWM baseline."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from hydraprune.masks.view import MaskView
from hydraprune.pruners.base import OneShot
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.selection import masked_weights


class Magnitude(OneShot):
    """The largest |weight| stay (Han et al., arXiv:1506.02626; least weight magnitude, LWM, in arXiv:2002.10509).

    Sample: `pruner: {kind: magnitude}` in a stage with `epochs: 0`
    """

    kind: Literal["magnitude"] = "magnitude"

    def score(self, view: MaskView, probe: Probe) -> dict[str, Tensor]:
        return masked_weights(view)
