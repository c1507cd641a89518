"""Training with interval bounds (Gowal et al., arXiv:1810.12715)."""

from __future__ import annotations

from typing import ClassVar, Literal

from hydraprune.bounds import methods as bounds
from hydraprune.objectives.certified import OverBoxes


class IBP(OverBoxes):
    """`kappa * CE(f(x), y) + (1 - kappa) * CE(worst logits by intervals, y)` (equation 11), natural while eps is 0.

    Batch norm sees the clean images alone, once a step; bounds take its statistics from there, with gradient, and are
    computed in float32 whatever the autocast. `verified_accuracy` is the share of the batch that the intervals verify
    at the present eps, of the network as it is normalised in training.

    Sample: `objective: {kind: ibp, ramp: {start: 1, length: 80, shape: smooth}, warmup: 0.5}`
    """

    kind: Literal["ibp"] = "ibp"
    bound: ClassVar = bounds.IBP()
