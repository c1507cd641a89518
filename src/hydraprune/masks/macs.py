"""How much work each weight does."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hydraprune.core.plain import evaluating
from hydraprune.masks.view import MaskView


def macs_per_weight(view: MaskView, x: Tensor) -> dict[str, int]:
    """Name -> multiplications of each weight of that tensor for one image, seen in one forward pass of `x`.

    A convolution applies a weight at every output position (a transposed one at every input position, where padding
    takes nothing off), a linear layer at every vector that it maps. A layer that is not reached counts 0.
    """
    found: Counter[str] = Counter(dict.fromkeys(view.modules, 0))

    def count(name: str, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        transposed = getattr(module, "transposed", False)
        seen, channels = (inputs[0], module.in_channels) if transposed else (output, module.weight.shape[0])
        found[name] += seen.numel() // (len(x) * channels)

    hooks = [
        module.register_forward_hook(partial(count, name))
        for name, modules in view.modules.items()
        for module in modules
    ]
    try:
        with evaluating(view.model), torch.no_grad():
            view.model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return dict(found)
