"""Convolutions whose bf16 weights are laid out once for the CPU's matrix units instead of in every pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# oneDNN's operators, which torch's own compiler calls for frozen networks; where a build lacks them nothing is packed
PACK: Any = getattr(torch.ops.mkldnn, "_reorder_convolution_weight", None)
CONVOLVE: Any = getattr(torch.ops.mkldnn, "_convolution_pointwise", None)


def packable(layer: nn.Module) -> bool:
    """Whether `Packed` computes what `layer` does, and faster: a plain 2-d bf16 convolution on a CPU that has oneDNN.

    Strided and grouped ones are left alone: their gradient is not a convolution with the same settings.
    """
    return (
        type(layer) is nn.Conv2d
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype == torch.bfloat16
        and layer.stride == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and all(p <= d * (k - 1) for p, d, k in zip(layer.padding, layer.dilation, layer.kernel_size, strict=True))
        and PACK is not None
        and CONVOLVE is not None
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class Packed:
    """The forward of `layer` with two packed copies of its weight: one for the output, one for the input's gradient.

    The gradient of the input of a convolution with stride 1 is itself a convolution, of the output's gradient with the
    weight turned by 180 degrees and its channels exchanged. Weight and bias take no gradient; that they are changed in
    place is noticed.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        self.weight, self.bias = layer.weight, layer.bias
        self.padding = [int(p) for p in layer.padding]
        self.dilation = layer.dilation
        reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        self.back_padding = [r - p for r, p in zip(reach, self.padding, strict=True)]
        self._version: int | None = None
        self._packs: dict[tuple[bool, torch.Size], Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:
        return _Convolve.apply(x.to(self.weight.dtype), self)  # type: ignore[no-untyped-call, no-any-return]

    def convolve(self, x: Tensor, *, back: bool) -> Tensor:
        """The output for images `x`, or with `back` the input's gradient for the output's gradient `x`."""
        padding = self.back_padding if back else self.padding
        bias = None if back else self.bias
        pack = self._pack(x.shape, back=back)
        output: Tensor = CONVOLVE(x, pack, bias, padding, (1, 1), self.dilation, 1, "none", [], "")
        return output

    def _pack(self, shape: torch.Size, *, back: bool) -> Tensor:
        if self.weight._version != self._version:
            self._packs.clear()
            self._version = self.weight._version
        pack = self._packs.get((back, shape))
        if pack is None:
            weight = self.weight.detach()
            weight = weight.flip(2, 3).transpose(0, 1) if back else weight
            padding = self.back_padding if back else self.padding
            pack = PACK(weight.contiguous(), padding, (1, 1), self.dilation, 1, shape)
            self._packs = {key: value for key, value in self._packs.items() if key[0] is not back}
            self._packs[back, shape] = pack
        return pack


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Packed) -> Tensor:
        ctx.layer = layer
        return layer.convolve(x, back=False)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.convolve(gradient, back=True), None
