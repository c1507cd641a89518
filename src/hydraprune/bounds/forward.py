"""Boxes of parallel lines by zonotopes: the way forward gives the numbers of the way back."""

from __future__ import annotations

from hydraprune.bounds.interval import Interval
from hydraprune.bounds.tape import IMAGES, Tape
from hydraprune.bounds.zonotope import TooLargeError, Zonotope


class Forward:
    """Carries a zonotope along `tape` as long as each step reads the one before.

    It computes each layer once for all those behind it, and of the ReLUs those only whose sign is open, so it is
    several times as fast as one way back from each layer.

    Args:
        tape: where it goes along.
        alone: end the way where the zonotope grows too large, because there are no fewer images to try it with.
    """

    def __init__(self, tape: Tape, *, alone: bool) -> None:
        self.tape = tape
        self.alone = alone
        self.name = IMAGES
        self.zonotope = Zonotope.around(tape.steps[IMAGES].box)

    def box(self, name: str) -> Interval | None:
        """A box around the outputs of a step, given the boxes of those before it.

        None for a step that the way has passed, and for all once it has ended.

        Raises:
            TooLargeError: if there are too many images for it.
        """
        steps = self.tape.steps
        names = list(steps)
        if names.index(name) < names.index(self.name):
            return None
        for after in names[names.index(self.name) + 1 : names.index(name) + 1]:
            op, inputs, _ = steps[after]
            if self.zonotope is None or op is None or inputs != (self.name,):
                self.zonotope = None
                return None
            try:
                self.zonotope = self.zonotope.after(op, steps[self.name].box)
            except TooLargeError:
                if not self.alone:
                    raise
                self.zonotope = None
            self.name = after
        return None if self.zonotope is None else self.zonotope.box(steps[name].box.shape)
