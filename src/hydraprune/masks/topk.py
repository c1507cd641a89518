"""Exact selection of the most important groups, and a mask through which gradients pass straight."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hydraprune.core.errors import PruningError

BRACKET = 0.01
"""Relative width around the last threshold in which the next one is looked for first."""

FEW = 1024
"""So many values are sorted rather than partitioned."""


def _kth_largest(values: Tensor, k: int) -> Tensor:
    if values.device.type == "cpu":
        # From the top: the many equal zeros of masked weights slow a partition from the bottom down thirty times.
        return torch.tensor(-np.partition(-values.numpy(), k - 1)[k - 1])
    return torch.topk(values, k, sorted=False).values.min()


def threshold(importance: Tensor, keep: int, near: float | None = None) -> Tensor:
    """The `keep`-th largest of `importance` (N,), 1 <= keep <= N.

    `near` is a guess, such as the threshold of the last step: if the answer lies within 1 % of it, only the few values
    there are partitioned. The result does not depend on it.
    """
    if near is not None and near > 0:
        low, high = near * (1 - BRACKET), near * (1 + BRACKET)
        candidates = importance[importance >= low]
        above = candidates > high
        rank = keep - int(above.sum())
        if rank > 0 and keep <= len(candidates):
            return _kth_largest(candidates[~above], rank)
    return _kth_largest(importance, keep)


def top_mask(
    importance: Tensor, keep: int, near: float | None = None, *, sort_ties: bool = False
) -> tuple[Tensor, float]:
    """The mask (N,) bool of the `keep` largest of `importance` (N,), and its threshold.

    Exactly `keep` entries are True. Among equal values the later indices are kept, as an ascending stable sort whose
    first N - keep entries are dropped does. With `sort_ties`, ties fall as `torch.sort` happens to order them on this
    machine, which is what the authors' code does.

    Raises:
        PruningError: if an importance is NaN, or `keep` lies outside 0..N.
    """
    if not 0 <= keep <= len(importance):
        raise PruningError(f"cannot keep {keep} of {len(importance)} groups; lower or raise the sparsity")
    if keep == 0:
        return torch.zeros_like(importance, dtype=torch.bool), float("inf")
    if importance.amax().isnan():
        raise PruningError("an importance score is NaN; lower the learning rate of the scores")
    at = threshold(importance, keep, near)
    mask = importance >= at
    surplus = int(mask.sum()) - keep
    if surplus > 0 and sort_ties:
        mask[importance.sort().indices[: len(importance) - keep]] = False
    elif surplus > 0:
        tied = (importance == at).nonzero().flatten()
        mask[tied[:surplus]] = False
    return mask, float(at)


def ascending(values: Tensor) -> Tensor:
    """`values` (N,) sorted."""
    # Numpy, which sorts no places along, takes less than half of torch's time.
    return torch.from_numpy(np.sort(values.numpy())) if values.device.type == "cpu" else values.sort().values


def affordable(importance: Tensor, cost: Tensor, total: int) -> Tensor:
    """The mask (N,) bool of the largest of `importance` (N,), as many as `total` pays for.

    They are taken one by one at `cost` (N,), integers of at least 0, until one is too dear; among equal values the
    later indices go first.
    """
    low, high, left = -torch.inf, torch.inf, total
    part, price = importance, cost
    # Halve what the budget ends in, until it is quickly sorted: what lies above `high` is paid.
    while len(part) > FEW:
        middle = float(threshold(part, len(part) // 2))
        better = part > middle
        spent = int(price[better].sum())
        if not better.any():
            break
        if spent > left:
            low = middle
        else:
            high, left, better = middle, left - spent, ~better
        part, price = part[better], price[better]
    mask = importance > high
    places = ((importance > low) & ~mask).nonzero().flatten()
    order = places[importance[places].argsort(stable=True).flip(0)]
    mask[order[: int((cost[order].cumsum(0) <= left).sum())]] = True
    return mask


class StraightThrough(torch.autograd.Function):
    """`weight * mask` whose gradient reaches the signed scores as if the mask were |score| (arXiv:2002.10509, A.3).

    With G the gradient at the masked weight: d/dweight = G * mask, and d/dscore = G * weight * sign(score) for every
    entry, kept or not. Mask and score have the weight's shape.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, score: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(weight, score, mask)
        return weight * mask

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weight, score, mask = ctx.saved_tensors
        over_weight, over_score, _ = ctx.needs_input_grad
        return (
            gradient * mask if over_weight else None,
            gradient * weight * score.sign() if over_score else None,
            None,
        )


class Passing(torch.autograd.Function):
    """`weight * mask` whose gradient is that of the masked weight, for pruned entries too."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor) -> Tensor:
        return weight * mask

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class SharedRate(torch.autograd.Function):
    """The masked weight as it is; the share gets the sum of its gradient times the weight."""

    @staticmethod
    def forward(ctx: Any, masked: Tensor, weight: Tensor, share: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return masked.view_as(masked)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor]:
        (weight,) = ctx.saved_tensors
        return gradient, None, (gradient * weight).sum()
