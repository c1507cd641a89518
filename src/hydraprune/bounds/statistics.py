"""What batch norm saw in the clean pass, for the bounds of the same training step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hydraprune.core.errors import SpecError

Statistics = dict[nn.Module, tuple[Tensor, Tensor]]
"""Batch norm -> mean and biased variance (C,) of the batch that it normalised, with gradient."""


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[Statistics]:
    """Inside, one forward pass of `model` in training mode records the statistics that normalised it.

    Bounds take them as constants of the batch, so that they hold for the function of that pass, and gradients flow
    through them; the running statistics are moved by that pass alone (arXiv:2103.17268).

        with batch_statistics(model) as statistics:
            logits = model(x)
        margins = bounds.margins(model, threat.box(x), y, statistics)

    Raises:
        SpecError: if a norm runs twice inside: its two batches differ. Record one pass, of a model that shares none.
    """
    statistics: Statistics = {}

    def record(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        if norm in statistics:
            raise SpecError("a batch norm ran twice while its statistics were recorded; record a single clean pass")
        if norm.training or norm.running_mean is None:
            x = inputs[0].to(torch.promote_types(inputs[0].dtype, torch.float32))
            var, mean = torch.var_mean(x, [0, *range(2, x.dim())], correction=0)
            statistics[norm] = (mean, var)

    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    hooks = [norm.register_forward_pre_hook(record) for norm in norms]
    try:
        yield statistics
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def normalised_by(statistics: Statistics) -> Iterator[None]:
    """Inside, the batch norms of `statistics` normalise with them, with gradient, and keep their running ones."""
    for norm, (mean, var) in statistics.items():
        norm.forward = partial(_normalised, *affine(norm, mean, var))  # type: ignore[assignment]
    try:
        yield
    finally:
        for norm in statistics:
            del norm.forward


def affine(norm: Any, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Factor and shift (C,) of a batch norm that normalises with `mean` and `var` (C,)."""
    factor = torch.rsqrt(var + norm.eps)
    if norm.weight is not None:
        factor = factor * norm.weight
    return factor, -mean * factor if norm.bias is None else norm.bias - mean * factor


def _normalised(factor: Tensor, shift: Tensor, x: Tensor) -> Tensor:
    shape = (1, -1, *[1] * (x.dim() - 2))
    return torch.addcmul(shift.view(shape), x, factor.view(shape))
