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
        shape: `linear`, or `smooth`: a power of time up to `middle`, then straight on (from arXiv:1906.06316).
        middle: of a smooth ramp: the share of `length` after which it goes straight on.
        power: of a smooth ramp.
        initial: share of eps before the ramp.
    """

    start: Number = Field(default=0.0, ge=0)
    length: Number = Field(default=0.0, ge=0)
    shape: Literal["linear", "smooth"] = "linear"
    middle: Number = Field(default=0.25, gt=0, le=1)
    power: Number = Field(default=4.0, ge=1)
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
        return self.initial + (1 - self.initial) * (time if self.shape == "linear" else self._smooth(time))

    def _smooth(self, time: float) -> float:
        """A power up to the middle, then linear to (1, 1) with the same slope."""
        middle, slope = self.middle, self.power * self.middle ** (self.power - 1)
        end = middle**self.power + slope * (1 - middle)  # of the line, before it is scaled to reach 1
        return (time**self.power if time < middle else end - slope * (1 - time)) / end


def follow(share: float, final: float) -> float:
    """A weight that falls from 1 to `final` while the share of eps grows from 0 to 1."""
    return 1 - share * (1 - final)
