"""How much work each weight does."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hydraprune.core.plain import canonical, evaluating
from hydraprune.masks.view import MaskView


def macs_per_weight(view: MaskView, x: Tensor) -> dict[str, int]:
    """Name -> multiplications of each weight of that tensor for one image, seen in one forward pass of `x`.

    A convolution applies a weight at every output position (a transposed one at every input position, where padding
    takes nothing off), a linear layer at every vector that it maps, attention at every query, key or value: those of a
    joint tensor are averaged. A layer that is not reached counts 0.
    """
    found: Counter[str] = Counter(dict.fromkeys(view.modules, 0))

    def count(name: str, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        transposed = getattr(module, "transposed", False)
        seen, channels = (inputs[0], module.in_channels) if transposed else (output, module.weight.shape[0])
        found[name] += seen.numel() // (len(x) * channels)

    def attend(path: str, module: Any, inputs: tuple[Tensor, ...], named: dict[str, Any], output: Any) -> None:
        roles = ("query", "key", "value")
        seen = dict(zip(roles, inputs, strict=False)) | named
        query, key, value = (seen[role].numel() // (len(x) * seen[role].shape[-1]) for role in roles)
        uses = {
            "in_proj_weight": (query + key + value) // 3,
            "q_proj_weight": query,
            "k_proj_weight": key,
            "v_proj_weight": value,
            "out_proj.weight": query,  # which attention multiplies with by itself
        }
        for tensor, times in uses.items():
            if (name := canonical(f"{path}.{tensor}" if path else tensor)) in found:
                found[name] += times

    attention = {path: m for path, m in view.model.named_modules() if isinstance(m, nn.MultiheadAttention)}
    hooks = [m.register_forward_hook(partial(attend, path), with_kwargs=True) for path, m in attention.items()]
    hooks += [
        module.register_forward_hook(partial(count, name))
        for name, modules in view.modules.items()
        for module in modules
        if not isinstance(module, nn.MultiheadAttention)
    ]
    try:
        with evaluating(view.model), torch.no_grad():
            view.model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return dict(found)
