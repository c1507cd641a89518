"""What a pass of one image costs: multiply-accumulate operations of all weights, and of those kept."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hydraprune.core.network import device_of, dtype_of
from hydraprune.core.plain import evaluating, plain_copy
from hydraprune.masks.macs import macs_per_weight
from hydraprune.masks.view import MaskView


class Macs(NamedTuple):
    """Multiply-accumulate operations of one image: with every weight, and with those that masks keep."""

    dense: int
    kept: int


def macs(model: nn.Module, shape: tuple[int, ...]) -> tuple[Macs, dict[str, Macs]]:
    """Of the whole `model` for an image of `shape` (C, H, W), and of each prunable weight by canonical name.

    What is not masked (the products of attention, say) counts in full, as torch counts it; norms and activations are
    not counted.
    """
    x = torch.zeros(1, *shape, device=device_of(model), dtype=dtype_of(model))
    plain = plain_copy(model)
    # With gradients, as torch does not count the fused attention that it takes without.
    with evaluating(plain), torch.enable_grad(), FlopCounterMode(display=False) as counter:
        plain(x)
    whole = counter.get_total_flops() // 2
    view = MaskView(model)
    uses = macs_per_weight(view, x)
    layers = {name: Macs(uses[name] * count.total, uses[name] * count.kept) for name, count in view.counts().items()}
    return Macs(whole, whole - sum(layer.dense - layer.kept for layer in layers.values())), layers
