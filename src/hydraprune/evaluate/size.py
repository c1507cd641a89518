"""What a pass of one image costs: multiply-accumulate operations of all weights, and of those kept."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hydraprune.core.plain import evaluating, plain_copy
from hydraprune.masks.view import MaskView


class Macs(NamedTuple):
    """Multiply-accumulate operations of one image: with every weight, and with those that masks keep."""

    dense: int
    kept: int


def macs(model: nn.Module, shape: tuple[int, ...]) -> tuple[Macs, dict[str, Macs]]:
    """Of the whole `model` for an image of `shape` (C, H, W), and of each prunable weight by canonical name.

    Every weight of a layer is taken to be used equally often, which padding at the border changes by little. What is
    not masked (attention, say) counts in full; norms and activations are not counted.
    """
    device = next(model.parameters()).device
    plain = plain_copy(model)
    counter = FlopCounterMode(display=False)
    with evaluating(plain), torch.no_grad(), counter:
        plain(torch.zeros(1, *shape, device=device))
    found = {name: sum(flops.values()) // 2 for name, flops in counter.get_flop_counts().items()}
    root = type(plain).__name__
    layers = {}
    for name, count in MaskView(model).counts().items():
        path = name.rpartition(".")[0]
        dense = found.get(f"{root}.{path}" if path else root, 0)
        layers[name] = Macs(dense, round(dense * count.kept / count.total))
    whole = found["Global"]
    return Macs(whole, whole - sum(layer.dense - layer.kept for layer in layers.values())), layers
