"""Optimizer, learning-rate schedule and weight average of one training stage."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hydraprune.core.objective import Clock
from hydraprune.core.spec import Number, Spec


class Optim(Spec):
    """How a stage moves its tensors.

    Args:
        kind: `sgd` (with Nesterov momentum if `nesterov`), `adam` or `adamw`.
        lr: the largest learning rate.
        momentum: of SGD, in [0, 1).
        weight_decay: at least 0; it applies to every tensor that the stage moves, scores included, as in the paper.
        clip_norm: largest Euclidean norm of the whole gradient; None leaves it alone.
        schedule: `cosine` to 0, `step` (x 0.1 at 75 % and at 90 % of the stage), `onecycle` (up linearly until 40 %,
            then down to 0) or `constant`; all follow the optimizer step, not the epoch.
        warmup_epochs: epochs of linear growth from 0 before the schedule.
        ema: decay per step of an exponential moving average that replaces the tensors at the end and in validation,
            such as 0.999; None keeps the last ones.
    """

    kind: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Number = Field(default=0.1, gt=0)
    momentum: Number = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: Number = Field(default=1e-4, ge=0)
    clip_norm: Number | None = Field(default=None, gt=0)
    schedule: Literal["cosine", "step", "onecycle", "constant"] = "cosine"
    warmup_epochs: Number = Field(default=0.0, ge=0)
    ema: Number | None = Field(default=None, gt=0, lt=1)

    def build(self, params: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer over `params`; fused where torch has a fused kernel for them."""
        fused = all(p.is_floating_point() for p in params)
        if self.kind == "sgd":
            return torch.optim.SGD(
                params, self.lr, self.momentum, weight_decay=self.weight_decay, nesterov=self.nesterov, fused=fused
            )
        adam = torch.optim.Adam if self.kind == "adam" else torch.optim.AdamW
        return adam(params, self.lr, weight_decay=self.weight_decay, fused=fused)

    @property
    def slots(self) -> dict[str, bool]:
        """What the optimizer remembers of each tensor that it has moved, and whether that has the tensor's shape."""
        if self.kind == "sgd":
            return {"momentum_buffer": True} if self.momentum else {}
        return {"step": False, "exp_avg": True, "exp_avg_sq": True}

    def rate(self, clock: Clock) -> float:
        """The learning rate of the step that is about to be taken."""
        warmup = self.warmup_epochs * clock.steps_per_epoch
        total = clock.epochs * clock.steps_per_epoch
        if clock.step < warmup:
            return self.lr * (clock.step + 1) / (warmup + 1)
        share = (clock.step - warmup) / max(1.0, total - warmup)
        match self.schedule:
            case "cosine":
                return self.lr * 0.5 * (1 + math.cos(math.pi * share))
            case "step":
                return self.lr * (1.0 if share < 0.75 else 0.1 if share < 0.9 else 0.01)
            case "onecycle":
                steps = max(1.0, total - warmup)
                return self.lr * min((share + 1 / steps) / 0.4, (1 - share) / 0.6, 1.0)
            case "constant":
                return self.lr


class Average:
    """An exponential moving average of `params` with decay `decay` per step, started at their present values."""

    def __init__(self, params: Sequence[nn.Parameter], decay: float) -> None:
        self._params = list(params)
        self._decay = decay
        self.values: list[Tensor] = [p.detach().clone() for p in params]
        self._steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Follow the parameters by one step; the first steps count more, so that the start is soon forgotten."""
        self._steps += 1
        decay = min(self._decay, self._steps / (self._steps + 10))
        torch._foreach_lerp_(self.values, [p.detach() for p in self._params], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the parameters hold the average."""
        kept = [p.detach().clone() for p in self._params]
        self.settle()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_([p.detach() for p in self._params], kept)

    @torch.no_grad()
    def settle(self) -> None:
        """Leave the average in the parameters for good."""
        torch._foreach_copy_([p.detach() for p in self._params], self.values)

    def state(self) -> tuple[list[Tensor], int]:
        """Average and number of steps."""
        return self.values, self._steps

    def restore(self, values: Sequence[Tensor], steps: int) -> None:
        """Take up a saved state."""
        torch._foreach_copy_(self.values, list(values))
        self._steps = steps
