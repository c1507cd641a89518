"""How certified training grows its radius, and the weights that follow the radius."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hydraprune.core.spec import Number, Spec


class Ramp(Spec):
    """The share of eps that is trained against: `initial` until epoch `start`, 1 from epoch `start + length` on.

    Epochs count from 0, so `{start: 10, length: 120}` trains epochs 10 to 129 with a growing radius. The code of
    CROWN-IBP and HYDRA calls this a schedule of length 121, and one of length 1 what is `length: 0` here; that of
    arXiv:2103.17268 counts epochs from 1, so that its start is one more.

    Args:
        start: epoch at which eps begins to grow.
        length: epochs that it grows for; with 0 eps is full at once, whatever the start, as pruning and fine-tuning
            need. Training from scratch seldom succeeds without a ramp over half of the epochs.
        shape: `linear`, or `smooth`: the fourth power of time for the first quarter, then straight on (from
            arXiv:1906.06316).
        initial: share of eps before the ramp.
    """

    start: Number = Field(default=0.0, ge=0)
    length: Number = Field(default=0.0, ge=0)
    shape: Literal["linear", "smooth"] = "linear"
    initial: Number = Field(default=0.0, ge=0, le=1)

    @property
    def end(self) -> float:
        """The epoch from which on eps is full."""
        return self.start + self.length if self.length else 0.0

    def share(self, epoch: float) -> float:
        """The share of eps, in [0, 1], after `epoch` epochs."""
        if epoch >= self.end:
            return 1.0
        time = max(0.0, epoch - self.start) / self.length
        return self.initial + (1 - self.initial) * (time if self.shape == "linear" else _smooth(time))


def _smooth(time: float) -> float:
    """Fourth power up to a quarter, then linear to (1, 1) with the same slope."""
    return 256 * time**4 / 13 if time < 0.25 else (16 * time - 3) / 13


def follow(share: float, final: float) -> float:
    """A weight that falls from 1 to `final` while the share of eps grows from 0 to 1."""
    return 1 - share * (1 - final)
