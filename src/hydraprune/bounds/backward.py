"""Linear bounds: from a step of a network back to the images (CROWN, arXiv:1811.00866)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hydraprune.bounds.interval import Interval
from hydraprune.bounds.ops import Back, Ends, ReLU, Slope
from hydraprune.bounds.rows import Rows, unit_rows
from hydraprune.bounds.tape import IMAGES, Tape
from hydraprune.core.threat import Box


@dataclass(frozen=True)
class Backward:
    """Linear bounds on the steps of `tape`, which hold while its boxes do.

    Args:
        slope: lower line of unstable ReLUs.
        chunk: how many rows, each one linear function of one image, are computed at once. That bounds the memory: some
            four times `chunk` rows of the largest layer. With gradients, chunks are computed again on the way back
            instead of being kept.
    """

    tape: Tape
    slope: Slope
    chunk: int

    def tighten(self, name: str) -> None:
        """Take the box of a step from linear bounds, unless interval arithmetic is exact up to there.

        The box of a ReLU's output stays what the box of its input makes it.
        """
        step = self.tape.steps[name]
        if not isinstance(step.op, ReLU) and not self.tape.exact(name):
            lower, upper = self.neurons(name)
            self.tape.steps[name] = step._replace(box=Interval(lower=lower, upper=upper))

    def functions(self, rows: Tensor, floor: str = IMAGES) -> Tensor:
        """Lower bounds (B, S) of the linear functions `rows` (B, S, K) of the logits.

        Args:
            floor: the step where the way back ends, in its box.
        """

        def part(images: slice, some: slice) -> Rows:
            return Rows(rows[images, None, some])

        return self._ends(self.tape.last, part, rows.shape[1], 1, floor)[0].squeeze(2)

    def neurons(self, name: str) -> Box:
        """Bounds of every output of a step, each end (B, *shape)."""
        box = self.tape.steps[name].box
        positions = box.shape[2] * box.shape[3] if len(box.shape) == 4 else 1
        units = torch.eye(box.shape[1:].numel() // positions, dtype=box.center.dtype, device=box.center.device)

        def ends(picked: Tensor) -> tuple[Tensor, Tensor]:
            def part(images: slice, some: slice) -> Rows:
                return unit_rows(picked[some], box.shape[1:])

            return self._ends(name, part, len(units), positions, IMAGES)

        lower, upper = ends(units)
        # Between parallel lines one way back serves both ends.
        if self.slope != "same" or self.tape.pools():
            upper = -ends(-units)[0]
        return Box(lower.reshape(box.shape), upper.reshape(box.shape))

    def _ends(
        self, start: str, rows: Callable[[slice, slice], Rows], specs: int, positions: int, floor: str
    ) -> tuple[Tensor, Tensor]:
        """Both ends (B, specs, positions) of `rows(images, specifications)` over a step, chunk by chunk."""
        batch = self.tape.steps[start].box.shape[0]
        images = max(1, self.chunk // (specs * positions))
        some = max(1, self.chunk // positions)
        lower: list[Tensor] = []
        upper: list[Tensor] = []
        for first in range(0, batch, images):
            here = slice(first, first + images)
            walk = partial(self._walk, start, self._backs(start, floor, here), here)
            if torch.is_grad_enabled() and (images < batch or some < specs):
                walk = partial(checkpoint, walk, use_reentrant=False, preserve_rng_state=False)
            ends = [walk(rows(here, slice(spec, spec + some))) for spec in range(0, specs, some)]
            for found, end in zip((lower, upper), zip(*ends, strict=True), strict=True):
                # Positions come first within a chunk.
                found.append(torch.cat([e.unflatten(1, (positions, -1)).transpose(1, 2) for e in end], 1))
        return torch.cat(lower), torch.cat(upper)

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

    def _walk(self, start: str, backs: dict[str, Back], images: slice, rows: Rows) -> tuple[Tensor, Tensor]:
        """Both ends, (images, positions * specifications), of rows over the outputs of a step."""
        ends = Ends()
        waiting = {start: rows}
        # Whatever reads a step comes before it, so the rows over its outputs are complete when it is reached.
        for name, back in backs.items():
            for source, part in zip(self.tape.steps[name].inputs, back(waiting.pop(name), ends), strict=True):
                waiting[source] = waiting[source].plus(part) if source in waiting else part
        for name, rest in waiting.items():
            box = self.tape.steps[name].box[images]
            ends.add(rest.dot(box.center), rest.magnitude().dot(box.radius))
        middle, reach = torch.as_tensor(ends.middle), torch.as_tensor(ends.reach)
        return middle - reach, middle + reach
