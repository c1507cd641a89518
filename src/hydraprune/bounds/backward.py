"""Linear bounds: from a step of a network back to the images (CROWN, arXiv:1811.00866)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hydraprune.bounds.forward import Forward
from hydraprune.bounds.interval import Interval
from hydraprune.bounds.ops import Back, Ends, ReLU, Slope
from hydraprune.bounds.rows import Rows, unit_rows
from hydraprune.bounds.tape import IMAGES, Tape
from hydraprune.core.threat import Box

CPU_ROWS, ROWS = 128, 2048

Chunk = Annotated[int | None, Field(ge=1)]
"""How many rows of linear bounds, a row being one function of one image, are computed at once.

Their memory is about four times so many rows of the largest layer; all positions of a channel count as one piece, so it
is never less than the positions of one map. None takes 128 on a CPU, which fits its caches, and 2048 elsewhere; between
parallel lines, it prefers the way forward.
"""


@dataclass(frozen=True)
class Backward:
    """Linear bounds on the steps of `tape`, which hold while its boxes do.

    Args:
        slope: lower lines of unstable ReLUs.
        chunk: how many rows, each one linear function of one image, are computed at once; see `Chunk`.
        forward: finds the boxes of parallel lines for less, as far as it gets.
    """

    tape: Tape
    slope: Slope
    chunk: int | None
    forward: Forward | None = None

    def tighten(self, name: str) -> None:
        """Take the box of a step from linear bounds, unless interval arithmetic is exact up to there.

        The box of a ReLU's output stays what the box of its input makes it.
        """
        step = self.tape.steps[name]
        if not isinstance(step.op, ReLU) and not self.tape.exact(name):
            box = self.forward.box(name) if self.forward is not None else None
            if box is None:
                lower, upper = self.neurons(name)
                box = Interval(lower=lower, upper=upper)
            self.tape.steps[name] = step._replace(box=box)

    def functions(self, rows: Tensor, floor: str = IMAGES) -> Tensor:
        """Lower bounds (B, S) of the linear functions `rows` (B, S, K) of the logits.

        With gradients, what the way back computes is kept, as much as in about S passes of the network.

        Args:
            floor: the step where the way back ends, in its box.
        """

        def part(images: slice, some: slice) -> Rows:
            return Rows(-rows[images, None, some])

        return -self._ends(self.tape.last, part, rows.shape[1], 1, floor)[1].squeeze(2)

    def neurons(self, name: str) -> Box:
        """Bounds of every output of a step, each end (B, *shape).

        With gradients, each chunk is computed again when they are taken, instead of being kept.
        """
        box = self.tape.steps[name].box
        positions = box.shape[2] * box.shape[3] if len(box.shape) == 4 else 1
        units = torch.eye(box.shape[1:].numel() // positions, dtype=box.center.dtype, device=box.center.device)

        def ends(picked: Tensor) -> tuple[Tensor, Tensor]:
            def part(images: slice, some: slice) -> Rows:
                return unit_rows(picked[some], box.shape[1:])

            return self._ends(name, part, len(units), positions, IMAGES, again=torch.is_grad_enabled())

        lower, upper = ends(units)
        # Between parallel lines one way back serves both ends.
        if self.slope != "same" or self.tape.pools():
            lower = -ends(-units)[1]
        return Box(lower.reshape(box.shape), upper.reshape(box.shape))

    def _ends(
        self,
        start: str,
        rows: Callable[[slice, slice], Rows],
        specs: int,
        positions: int,
        floor: str,
        *,
        again: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Both ends (B, specs, positions), see `Ends`, of `rows(images, specifications)` over the outputs of a step."""
        box = self.tape.steps[start].box
        chunk = self.chunk or (CPU_ROWS if box.device.type == "cpu" else ROWS)
        images, some = max(1, chunk // (specs * positions)), max(1, chunk // positions)
        parts = []
        for first in range(0, box.shape[0], images):
            here = slice(first, first + images)
            walk = partial(self._walk, start, self._backs(start, floor, here), here)
            if again:
                walk = partial(checkpoint, walk, use_reentrant=False, preserve_rng_state=False)
            ends = [walk(rows(here, slice(spec, spec + some))) for spec in range(0, specs, some)]
            # Within a chunk, positions come first.
            parts.append(torch.cat([end.unflatten(2, (positions, -1)).transpose(2, 3) for end in ends], 2))
        lower, upper = torch.cat(parts, 1)
        return lower, upper

    def _backs(self, start: str, floor: str, images: slice) -> dict[str, Back]:
        """The way back through each step that lies between `floor` and `start`, the last one first."""
        steps = self.tape.steps
        backs: dict[str, Back] = {}
        reached = {start} - {floor}
        for name, (op, inputs, _) in reversed(steps.items()):
            if op is not None and name in reached:
                backs[name] = op.back(self.slope, *(steps[source].box[images] for source in inputs))
                reached |= {*inputs} - {floor}
        return backs

    def _walk(self, start: str, backs: dict[str, Back], images: slice, rows: Rows) -> Tensor:
        """Both ends (2, images, positions * specifications) of rows over the outputs of a step."""
        ends = Ends()
        waiting = {start: rows}
        # Whatever reads a step comes before it, so the rows over its outputs are complete when it is reached.
        for name, back in backs.items():
            for source, part in zip(self.tape.steps[name].inputs, back(waiting.pop(name), ends), strict=True):
                waiting[source] = waiting[source].plus(part) if source in waiting else part
        for name, rest in waiting.items():
            box = self.tape.steps[name].box[images]
            ends.add(rest.dot(box.center), rest.magnitude().dot(box.radius))
        return torch.stack([ends.middle - ends.reach, ends.middle + ends.reach])
