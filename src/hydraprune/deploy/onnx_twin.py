"""An ONNX graph computed by torch: the numbers that ONNX Runtime computes, with gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hydraprune.core.errors import CheckpointError, SpecError
from hydraprune.core.files import reason
from hydraprune.deploy.read_onnx import image_of, read_onnx

if TYPE_CHECKING:
    from onnx import NodeProto

Function = Callable[..., Tensor]


class OnnxTwin(nn.Module):
    """The network of an ONNX file as torch computes it: images (B, C, H, W) in [0, 1] to logits (B, K).

    Where the file rounds, this does, to the same levels; in the backward pass rounding counts as the identity
    (straight-through, arXiv:1308.3432), clipping to the ends of the levels as what it is. So an attack on it is one on
    the rounded network, whose own gradient is zero almost everywhere.

    Args:
        path: an `.onnx` file, of which every operator must be in `OPERATORS`.

    Raises:
        CheckpointError: if the file is missing, damaged, or no image classifier.
        SpecError: for an operator that is not known here, or a use of it.
        MissingError: without the package onnx.
    """

    def __init__(self, path: Path | str) -> None:
        super().__init__()
        from onnx import numpy_helper

        graph = read_onnx(Path(path)).graph
        try:
            known = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        except Exception as error:  # of numpy, for what fits no shape
            raise CheckpointError(f"{path} is damaged: {reason(error)}; restore it or export it again") from None
        self.images, self.logits = image_of(graph).name, graph.output[0].name
        self.steps: list[_Step] = []
        self._names: dict[str, str] = {}
        for proto in graph.node:
            node = _Node(proto, known)
            step = _Step(node.function(), node.rest(), proto.output[0])
            if all(name in known for name in step.inputs) and proto.op_type in FOLDED:
                values = [torch.as_tensor(np.array(known[name])) for name in step.inputs]
                known[step.output] = step.function(*values).numpy()
                continue
            for name in step.inputs:
                if name in known and name not in self._names:
                    self._names[name] = f"constant{len(self._names)}"
                    self.register_buffer(self._names[name], torch.as_tensor(np.array(known[name])))
            self.steps.append(step)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K)."""
        found = {self.images: x}
        for step in self.steps:
            inputs = [found[name] if name in found else getattr(self, self._names[name]) for name in step.inputs]
            found[step.output] = step.function(*inputs)
        return found[self.logits]


class _Step(NamedTuple):
    function: Function
    inputs: tuple[str, ...]
    output: str


class _Node:
    """A step of the graph; `plain` takes out inputs that are settings, `rest` are those left."""

    def __init__(self, proto: NodeProto, known: Mapping[str, Any]) -> None:
        from onnx.helper import get_attribute_value

        self.kind = proto.op_type
        self.inputs = list(proto.input)
        self.known = known
        self.given = {attribute.name: get_attribute_value(attribute) for attribute in proto.attribute}
        self.taken: set[int] = set()

    def function(self) -> Function:
        if self.kind not in OPERATORS:
            raise SpecError(
                f"the ONNX operator {self.kind[:80]!r} is not known here, so there is no network with gradients to "
                "attack; measure nothing: `--samples 0`"
            )
        return OPERATORS[self.kind](self)

    def rest(self) -> tuple[str, ...]:
        return tuple(name for place, name in enumerate(self.inputs) if name and place not in self.taken)

    def plain(self, place: int, default: Any = None) -> Any:
        """The constant that is the input at `place`: a number, or a list of them."""
        self.taken.add(place)
        if place >= len(self.inputs) or not self.inputs[place]:
            return default
        if self.inputs[place] not in self.known:
            raise self.unlike("a setting that is computed")
        return self.known[self.inputs[place]].tolist()

    def only(self, **values: Any) -> None:
        """See that attributes have one of these values, which all that is written here has."""
        for name, value in values.items():
            if name in self.given and self.given[name] != value:
                raise self.unlike(f"{name} {self.given[name]!r}")

    def unlike(self, what: str) -> SpecError:
        return SpecError(f"the ONNX operator {self.kind!r} with {what} is not known here; measure nothing: `--samples 0`")

    def sides(self, name: str) -> tuple[int, int]:
        first, second = self.given.get(name, (1, 1))
        return first, second

    def padding(self) -> tuple[int, int, int, int]:
        """Left, right, top, bottom, as `F.pad` takes them."""
        self.only(auto_pad=b"NOTSET")
        top, left, bottom, right = self.given.get("pads", (0, 0, 0, 0))
        return left, right, top, bottom


def _same(x: Tensor) -> Tensor:
    return x


def _plainly(function: Function) -> Callable[[_Node], Function]:
    """For an operator without settings."""
    return lambda node: function


def _padded(x: Tensor, padding: tuple[int, int, int, int], value: float, function: Function) -> Tensor:
    return function(F.pad(x, padding, value=value) if any(padding) else x)


def _conv(node: _Node) -> Function:
    left, right, top, bottom = padding = node.padding()
    settings = {"stride": node.sides("strides"), "dilation": node.sides("dilations"), "groups": node.given.get("group", 1)}
    if (left, top) == (right, bottom):
        return partial(F.conv2d, padding=(top, left), **settings)
    return partial(_conv_uneven, sides=padding, settings=settings)


def _conv_uneven(x: Tensor, *weights: Tensor, sides: tuple[int, int, int, int], settings: dict[str, Any]) -> Tensor:
    return F.conv2d(F.pad(x, sides), *weights, **settings)


def _max_pool(node: _Node) -> Function:
    node.only(ceil_mode=0, storage_order=0)
    pool = partial(
        F.max_pool2d,
        kernel_size=node.sides("kernel_shape"),
        stride=node.sides("strides"),
        dilation=node.sides("dilations"),
    )
    left, right, top, bottom = padding = node.padding()
    if (left, top) == (right, bottom):
        return partial(pool, padding=(top, left))
    return partial(_padded, padding=padding, value=-math.inf, function=pool)


def _average_pool(node: _Node) -> Function:
    left, right, top, bottom = node.padding()
    if (left, top) != (right, bottom):
        raise node.unlike("uneven padding")
    node.only(ceil_mode=0, dilations=[1, 1])
    return partial(
        F.avg_pool2d,
        kernel_size=node.sides("kernel_shape"),
        stride=node.sides("strides"),
        padding=(top, left),
        count_include_pad=bool(node.given.get("count_include_pad", 0)),
    )


def _mean(node: _Node) -> Function:
    axes = node.given.get("axes") or node.plain(1)
    if not axes:
        raise node.unlike("all axes")
    return partial(torch.mean, dim=tuple(axes), keepdim=bool(node.given.get("keepdims", 1)))


def _gemm(node: _Node) -> Function:
    node.only(alpha=1.0, beta=1.0, transA=0)
    return F.linear if node.given.get("transB", 0) else _linear


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight.T, bias)


def _clip(node: _Node) -> Function:
    return partial(torch.clamp, min=node.plain(1), max=node.plain(2))


def _reshape(node: _Node) -> Function:
    shape = node.plain(1)
    kept = [place for place, side in enumerate(shape) if side == 0 and not node.given.get("allowzero", 0)]
    return partial(_reshaped, shape=tuple(shape), kept=tuple(kept))


def _reshaped(x: Tensor, shape: tuple[int, ...], kept: tuple[int, ...]) -> Tensor:
    return x.reshape(*(x.shape[place] if place in kept else side for place, side in enumerate(shape)))


def _flatten(node: _Node) -> Function:
    node.only(axis=1)
    return partial(torch.flatten, start_dim=1)


def _concat(node: _Node) -> Function:
    return partial(_joined, dim=node.given["axis"])


def _joined(*parts: Tensor, dim: int) -> Tensor:
    return torch.cat(parts, dim)


def _transpose(node: _Node) -> Function:
    return partial(torch.permute, dims=tuple(node.given["perm"]))


def _softmax(node: _Node) -> Function:
    return partial(torch.softmax, dim=node.given.get("axis", -1))


def _hard_sigmoid(node: _Node) -> Function:
    return partial(_ramp, slope=node.given.get("alpha", 0.2), shift=node.given.get("beta", 0.5))


def _ramp(x: Tensor, slope: float, shift: float) -> Tensor:
    return (slope * x + shift).clamp(0, 1)


def _hard_swish(x: Tensor) -> Tensor:
    return x * _ramp(x, 1 / 6, 0.5)


def _batch_norm(node: _Node) -> Function:
    node.only(training_mode=0)
    return partial(_normalised, eps=node.given.get("epsilon", 1e-5))


def _normalised(x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    return F.batch_norm(x, mean, var, scale, shift, eps=eps)


def _global_average(x: Tensor) -> Tensor:
    return torch.mean(x, dim=(2, 3), keepdim=True)


class _Round(torch.autograd.Function):
    """To the nearest integer, of two the even one; its gradient is taken for 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def _quantize(node: _Node) -> Function:
    """To whole numbers, held as float32."""
    scale, zero = node.plain(1), node.plain(2, 0)
    kinds = [node.known[name].dtype for name in node.inputs[2:3] if name in node.known]
    kind = np.iinfo(kinds[0] if kinds else np.uint8)
    if isinstance(scale, list) or kind.bits != 8:
        raise node.unlike("other than 8 bits and one scale")
    return partial(_levels, scale=scale, zero=zero, least=int(kind.min), most=int(kind.max))


def _levels(x: Tensor, scale: float, zero: int, least: int, most: int) -> Tensor:
    rounded: Tensor = _Round.apply(x / scale)  # type: ignore[no-untyped-call]
    return (rounded + zero).clamp(least, most)


def _dequantize(node: _Node) -> Function:
    scale, zero = node.plain(1), node.plain(2, 0)
    if not isinstance(scale, list):
        return partial(_values, scale=scale, zero=zero)
    return partial(_channels, scale=scale, zero=zero, axis=node.given.get("axis", 1))


def _values(x: Tensor, scale: float, zero: int) -> Tensor:
    return (x.float() - zero) * scale


def _channels(x: Tensor, scale: list[float], zero: list[int], axis: int) -> Tensor:
    shape = [-1 if place == axis % x.dim() else 1 for place in range(x.dim())]
    first = torch.tensor(zero or 0).view(shape)
    return (x - first) * torch.tensor(scale).view(shape)


FOLDED = {"DequantizeLinear"}
"""What is computed once where its inputs are constants: weights."""
OPERATORS: dict[str, Callable[[_Node], Function]] = {
    "Add": _plainly(torch.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Div": _plainly(torch.div),
    "Erf": _plainly(torch.erf),
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": _plainly(_global_average),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _plainly(_hard_swish),
    "Identity": _plainly(_same),
    "MatMul": _plainly(torch.matmul),
    "MaxPool": _max_pool,
    "Mul": _plainly(torch.mul),
    "QuantizeLinear": _quantize,
    "ReduceMean": _mean,
    "Relu": _plainly(torch.relu),
    "Reshape": _reshape,
    "Sigmoid": _plainly(torch.sigmoid),
    "Softmax": _softmax,
    "Sub": _plainly(torch.sub),
    "Tanh": _plainly(torch.tanh),
    "Transpose": _transpose,
}
"""Operator of ONNX -> what makes the function of torch out of its settings."""
