"""What batch norm saw in the clean pass, for the bounds of the same training step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
