"""RigL: rigging the lottery (Evci et al., arXiv:1911.11134)."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from hydraprune.pruners.regrow import Regrow


class RigL(Regrow):
    """Drops the smallest weights and grows where the robust gradient is largest (arXiv:1911.11134, algorithm 1).

    The share that is replaced falls to 0 as a cosine. Unlike there, the step of an update is taken, not left out.

    Sample: `pruner: {kind: rigl}` with `budget: {kind: erk, sparsity: 0.9}` in a stage over weights
    """

    kind: Literal["rigl"] = "rigl"
    growth: ClassVar[Literal["random", "gradient"]] = "gradient"

    def replaced(self, time: float) -> float:
        return self.drop / 2 * (1 + math.cos(math.pi * time))
