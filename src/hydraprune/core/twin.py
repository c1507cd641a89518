"""The model as an attack sees it: plain, frozen, weights cast and norm layers folded once per step."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn

from hydraprune.core.errors import SpecError
from hydraprune.core.graph import inside, traced
from hydraprune.core.network import device_of
from hydraprune.core.packed import Packed, packable
from hydraprune.core.plain import plain_copy

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
AFFINE = (*CONVOLUTIONS, nn.Linear)


def foldable(model: nn.Module) -> dict[str, str]:
    """Path of each batch norm -> path of the convolution that it can be folded into.

    A pair can be folded where each of the two runs once, the norm has running statistics, nothing but the norm reads
    the convolution's output, and no other layer shares its weights. Linear layers are left alone: behind one that sees
    (B, T, C), the norm scales T and not C. A model that cannot be traced has no pairs.
    """
    try:
        graph = traced(model)
    except SpecError:
        return {}
    calls = [node for node in graph.nodes if node.op == "call_module"]
    targets = [inside(node.target) for node in calls]
    users = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    pairs = {}
    for node, target in zip(calls, targets, strict=True):
        norm = model.get_submodule(target)
        before = node.args[0] if node.args else None
        if not isinstance(norm, NORMS) or norm.running_mean is None:
            continue
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        path = inside(before.target)
        layer, alone = model.get_submodule(path), targets.count(target) == targets.count(path) == 1
        if isinstance(layer, CONVOLUTIONS) and alone and all(users[id(p)] == 1 for p in layer.parameters()):
            pairs[target] = path
    return pairs


def folded(layer: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution `layer` followed by `norm` in evaluation mode."""
    weight, bias = layer.weight, layer.bias
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = (0 if bias is None else bias) - norm.running_mean
    shift = shift * scale + (0 if norm.bias is None else norm.bias)
    return weight * scale.view(-1, *[1] * (weight.dim() - 1)), shift


class Twin:
    """A plain copy of `source` in evaluation mode that follows its weights.

    The copy's parameters take no gradient. Batch norm that follows a convolution is folded into it, and under autocast
    the weights of convolutions and linear layers are held in the autocast type, so neither is done again in each of the
    attack's passes. On a CPU, bf16 convolutions are packed as well (`core/packed.py`).
    """

    def __init__(self, source: nn.Module, *, compile: bool = False) -> None:
        self.source = source
        self._step: int | None = None
        self._copy = plain_copy(source).eval().requires_grad_(False)
        pairs = foldable(self._copy)
        norms = {layer: self._live(norm) for norm, layer in pairs.items()}
        for norm in pairs:
            owner, _, name = norm.rpartition(".")
            setattr(self._copy.get_submodule(owner), name, nn.Identity())
        device = device_of(self._copy)
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        self._followers: list[tuple[nn.Module, Any, nn.Module | None]] = []
        for path, module in self._copy.named_modules():
            if isinstance(module, AFFINE):
                if path in norms and module.bias is None:
                    module.bias = nn.Parameter(module.weight.new_zeros(len(module.weight)), requires_grad=False)
                if dtype is not None:
                    module.to(dtype)
            if module._parameters or module._buffers:
                self._followers.append((self._live(path), module, norms.get(path)))
        if compile:
            self._copy.compile()  # lays weights out by itself
            return
        for module in self._copy.modules():
            if packable(module):
                module.forward = Packed(module)  # type: ignore[method-assign, arg-type]

    def _live(self, path: str) -> nn.Module:
        return self.source.get_submodule(path)

    @torch.no_grad()
    def refresh(self, step: int) -> nn.Module:
        """The copy, with the source's present weights; copied anew only when `step` differs from the last call's."""
        if step != self._step:
            for live, copy, norm in self._followers:
                if norm is not None:
                    weight, bias = folded(live, norm)
                    copy.weight.copy_(weight)
                    copy.bias.copy_(bias)
                    continue
                for name, value in [*copy._parameters.items(), *copy._buffers.items()]:
                    if value is not None:
                        value.copy_(getattr(live, name))
            self._step = step
        return self._copy


def judged(model: nn.Module) -> nn.Module:
    """The network that evaluation sees: a plain, frozen copy in evaluation mode and float32, norm layers folded.

    Float32 holds every value of half precision, so such a network is judged by its own weights.
    """
    if any(p.is_floating_point() and p.dtype != torch.float32 for p in model.parameters()):
        model = plain_copy(model).float()
    return Twin(model).refresh(0)
