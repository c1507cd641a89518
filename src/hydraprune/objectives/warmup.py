"""A regulariser for the first epochs of certified training (Shi et al., arXiv:2103.17268, section 4.3)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from hydraprune.core.threat import Box

_TOLERANCE, _TINY = 0.5, 1e-12


def warmup_loss(images: Box, entering: Iterable[Box]) -> Tensor:
    """Mean of `L_tight + L_relu` over the boxes that enter ReLUs.

    `L_tight = relu(t - d_0 / d) / t` asks that a box be at most 1 / t as wide on average, d, as that of the images,
    d_0. `L_relu = (relu(t - r_mean) + relu(t - r_var)) / t` asks for balance between the units that are surely active
    and those that surely are not: r_mean is the smaller over the larger of what the two add to the mean of the box
    centres, r_var the same of their variance. It is 0 where neither kind exists. t is 0.5.
    """
    width = (images.upper - images.lower).mean() / 2
    losses = [_tightness(width, box) + _balance(box) for box in entering]
    return torch.stack(losses).mean()


def _tightness(width: Tensor, box: Box) -> Tensor:
    ratio = width / ((box.upper - box.lower).mean() / 2).clamp_min(_TINY)
    return (_TOLERANCE - ratio).relu() / _TOLERANCE


def _balance(box: Box) -> Tensor:
    center = (box.lower + box.upper) / 2
    active, inactive = box.lower > 0, box.upper < 0
    deviation = (center - center.mean()) ** 2
    parts = [(center * active).sum(), -(center * inactive).sum()]
    spreads = [(deviation * active).sum(), (deviation * inactive).sum()]
    loss = sum((_TOLERANCE - _smaller(*pair)).relu() / _TOLERANCE for pair in (parts, spreads))
    # Chosen before the division, so that no unused branch has a gradient of NaN.
    known = (torch.maximum(*parts) > 0) & (torch.maximum(*spreads) > 0)
    return torch.where(known, loss, 0.0)


def _smaller(one: Tensor, other: Tensor) -> Tensor:
    """The smaller over the larger, both at least 0."""
    return torch.minimum(one, other) / torch.maximum(one, other).clamp_min(_TINY)
