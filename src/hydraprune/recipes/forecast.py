"""How long a run will take, told once its first steps are done."""

from __future__ import annotations

import time
from collections.abc import Callable

from hydraprune.core.hook import Hook
from hydraprune.core.objective import Clock

WATCHED = 10.0
"""Seconds of training after which a run is forecast."""
SHORT = 120.0
"""Runs of fewer seconds are not."""


class Forecast(Hook):
    """Tells how long this stage, and the epochs of those after it, will take at the speed of its first steps.

    Args:
        later: epochs of the stages that train after it.
        tell: shows a line.
        now: seconds, by a clock that never goes back.
    """

    def __init__(self, later: int, tell: Callable[[str], None], now: Callable[[], float] = time.perf_counter) -> None:
        self._later, self._tell, self._now = later, tell, now
        self._first: tuple[int, float] | None = None
        self.told = False

    def on_step(self, clock: Clock, images: int, loss: float) -> None:
        if self.told:
            return
        if self._first is None:  # it pays for what happens once
            self._first = clock.step, self._now()
            return
        step, began = self._first
        if (passed := self._now() - began) < WATCHED:
            return
        self.told = True
        epoch = passed / (clock.step - step) * clock.steps_per_epoch
        rest = epoch * (clock.epochs - clock.epoch)
        if rest + epoch * self._later >= SHORT:
            more = f", and {span(epoch * self._later)} for the stages after it" if self._later else ""
            self._tell(f"about {span(rest)} to go in this stage{more}")


def span(seconds: float) -> str:
    """`seconds` as one tells them: 40 s, 12 min, 3.5 h, 2.1 days."""
    for unit, length, most in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 48)):
        if seconds < most * length:
            return f"{seconds / length:.{1 if unit == 'h' else 0}f} {unit}"
    return f"{seconds / 86400:.1f} days"
