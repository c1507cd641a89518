"""Which operation of torch is which operation of bounds. What is not listed here is refused."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from hydraprune.bounds.interval import Interval
from hydraprune.bounds.ops import Add, Cat, Conv, Linear, MaxPool, Mean, Op, Pair, Permute, ReLU, Reshape, Scale
from hydraprune.bounds.statistics import Statistics, affine
from hydraprune.core.errors import SpecError


class Value(NamedTuple):
    """The output of a step: what stands for a tensor while a network is run on boxes."""

    name: str
    interval: Interval
    memory: str
    """The step whose memory this is, as a view or after an in-place operation."""
    version: int
    """How often that memory had been overwritten."""

    @property
    def shape(self) -> torch.Size:
        return self.interval.shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def size(self, axis: int | None = None) -> torch.Size | int:
        return self.shape if axis is None else self.shape[axis]

    def dim(self) -> int:
        return self.ndim


class Call(NamedTuple):
    """An operation and the values that it works on."""

    op: Op
    inputs: tuple[Value, ...]


Result = Call | Value


def _pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _axis(x: Value, axis: int) -> int:
    axis = axis % x.ndim
    if axis == 0:
        raise SpecError("works along the batch; bounds are image by image")
    return axis


def _attribute(x: Value, name: str) -> Any:
    if name not in ("shape", "ndim"):
        raise SpecError(f"of {name!r} is not known while bounds are computed")
    return getattr(x, name)


def _same(x: Value, *_: Any, **__: Any) -> Result:
    return x


def _relu(x: Value, inplace: bool = False) -> Result:
    return Call(ReLU(), (x,))


def _linear(x: Value, weight: Tensor, bias: Tensor | None = None) -> Result:
    return Call(Linear(weight, bias), (x,))


def _conv2d(
    x: Value,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Result:
    if isinstance(padding, str):
        raise SpecError(f"has padding {padding!r}; write the padding as numbers")
    return Call(Conv(weight, bias, _pair(stride), _pair(padding), _pair(dilation), groups), (x,))


def _avg_pool2d(
    x: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Result:
    kernel, padding = _pair(kernel_size), _pair(padding)
    if ceil_mode or (any(padding) and not count_include_pad):
        raise SpecError("averages windows of several sizes; use ceil_mode=False and count_include_pad=True")
    share = 1 / (divisor_override or kernel[0] * kernel[1])
    channels = x.shape[1]
    weight = x.interval.center.new_full((channels, 1, *kernel), share)
    return Call(Conv(weight, None, _pair(stride or kernel), padding, groups=channels), (x,))


def _adaptive_avg_pool2d(x: Value, output_size: Any) -> Result:
    side = (x.shape[2], x.shape[3])
    goal = [there if size is None else size for there, size in zip(side, _pair(output_size), strict=True)]
    if side[0] % goal[0] or side[1] % goal[1]:
        raise SpecError(f"pools {side} to {tuple(goal)}; choose an image size that it divides evenly")
    kernel = (side[0] // goal[0], side[1] // goal[1])
    return x if kernel == (1, 1) else _avg_pool2d(x, kernel)


def _max_pool2d(
    x: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Result:
    if return_indices:
        raise SpecError("returns indices, which have no bounds")
    kernel = _pair(kernel_size)
    return Call(MaxPool(kernel, _pair(stride or kernel), _pair(padding), _pair(dilation), ceil_mode), (x,))


def _reshaped(method: str) -> Callable[..., Result]:
    def rule(x: Value, *args: Any, **kwargs: Any) -> Result:
        op = Reshape(lambda t: getattr(t, method)(*args, **kwargs))
        if op.interval(x.interval).shape[0] != x.shape[0]:
            raise SpecError("changes the first axis, which is the batch")
        return Call(op, (x,))

    return rule


def _permute(x: Value, *dims: Any) -> Result:
    order = dims[0] if len(dims) == 1 else dims
    if order[0] % x.ndim:
        raise SpecError("moves the first axis, which is the batch")
    return Call(Permute(tuple(axis % x.ndim for axis in order)), (x,))


def _transpose(x: Value, dim0: int, dim1: int) -> Result:
    one, other = _axis(x, dim0), _axis(x, dim1)
    order = list(range(x.ndim))
    order[one], order[other] = other, one
    return _permute(x, *order)


def _mean(x: Value, dim: Any, keepdim: bool = False) -> Result:
    dims = dim if isinstance(dim, tuple | list) else (dim,)
    return Call(Mean(tuple(_axis(x, axis) for axis in dims), keepdim), (x,))


def _cat(tensors: Any, dim: int = 0) -> Result:
    if not all(isinstance(x, Value) for x in tensors):
        raise SpecError("joins a constant to what depends on the image")
    return Call(Cat(_axis(tensors[0], dim)), tuple(tensors))


def _scaled(x: Value, factor: Any, shift: Any) -> Result:
    for constant in (factor, shift):
        shape = torch.as_tensor(constant).shape
        if len(shape) > x.ndim or torch.broadcast_shapes(shape, x.shape) != x.shape:
            raise SpecError(f"joins shapes {tuple(x.shape)} and {tuple(shape)}; the constant may not enlarge the layer")
        if len(shape) == x.ndim and shape[0] != 1:
            raise SpecError(f"has a constant of shape {tuple(shape)}, one per image; it must be the same for all")
    return Call(Scale(factor, shift), (x,))


def _add(x: Any, other: Any, *, alpha: int = 1, sign: int = 1) -> Result:
    if alpha != 1:
        raise SpecError(f"adds with alpha {alpha}; multiply first")
    if isinstance(x, Value) and isinstance(other, Value):
        if x.shape != other.shape:
            raise SpecError(f"joins shapes {tuple(x.shape)} and {tuple(other.shape)}; expand neither")
        return Call(Add(sign), (x, other))
    if isinstance(x, Value):
        return _scaled(x, 1.0, sign * other)
    return _scaled(other, float(sign), x)


def _sub(x: Any, other: Any, *, alpha: int = 1) -> Result:
    return _add(x, other, alpha=alpha, sign=-1)


def _mul(x: Any, other: Any) -> Result:
    if isinstance(x, Value) and isinstance(other, Value):
        raise SpecError("multiplies two values that depend on the image")
    return _scaled(x, other, 0.0) if isinstance(x, Value) else _scaled(other, x, 0.0)


def _div(x: Any, other: Any) -> Result:
    if isinstance(other, Value):
        raise SpecError("divides by what depends on the image")
    return _scaled(x, 1 / other, 0.0)


def _neg(x: Value) -> Result:
    return _scaled(x, -1.0, 0.0)


def _batch_norm(module: Any, statistics: Statistics | None, x: Value) -> Result:
    mean, var = module.running_mean, module.running_var
    if module.training or mean is None:
        if statistics is None or module not in statistics:
            raise SpecError(
                "normalises with the batch, so it has no bounds of its own; call model.eval(), "
                "or hand over the statistics of the clean pass (`batch_statistics`)"
            )
        mean, var = statistics[module]
    return _scaled(x, *(t.view(1, -1, *[1] * (x.ndim - 2)) for t in affine(module, mean, var)))


def _conv_module(m: Any, x: Value) -> Result:
    if m.padding_mode != "zeros":
        raise SpecError(f"pads with {m.padding_mode!r}; use zeros")
    return _conv2d(x, m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups)


MODULES: dict[type[nn.Module], Callable[[Any, Value], Result]] = {
    nn.Conv2d: _conv_module,
    nn.Linear: lambda m, x: _linear(x, m.weight, m.bias),
    nn.ReLU: lambda m, x: _relu(x),
    nn.AvgPool2d: lambda m, x: _avg_pool2d(
        x, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override
    ),
    nn.AdaptiveAvgPool2d: lambda m, x: _adaptive_avg_pool2d(x, m.output_size),
    nn.MaxPool2d: lambda m, x: _max_pool2d(
        x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices
    ),
    nn.Flatten: lambda m, x: _reshaped("flatten")(x, m.start_dim, m.end_dim),
    nn.Unflatten: lambda m, x: _reshaped("unflatten")(x, m.dim, m.unflattened_size),
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d), lambda m, x: x),
}
"""Rules for the modules of `torch.nn`, beside batch norm. Dropout is what it is in evaluation: nothing."""

FUNCTIONS: dict[Any, Callable[..., Result]] = {
    getattr: _attribute,
    operator.add: _add,
    operator.iadd: _add,
    torch.add: _add,
    operator.sub: _sub,
    operator.isub: _sub,
    torch.sub: _sub,
    operator.mul: _mul,
    operator.imul: _mul,
    torch.mul: _mul,
    operator.truediv: _div,
    operator.itruediv: _div,
    torch.div: _div,
    operator.neg: _neg,
    torch.cat: _cat,
    torch.mean: _mean,
    torch.permute: _permute,
    torch.transpose: _transpose,
    torch.relu: _relu,
    torch.relu_: _relu,
    F.relu: _relu,
    F.linear: _linear,
    F.conv2d: _conv2d,
    F.avg_pool2d: _avg_pool2d,
    F.adaptive_avg_pool2d: _adaptive_avg_pool2d,
    F.max_pool2d: _max_pool2d,
    F.dropout: _same,
    F.dropout2d: _same,
    **{getattr(torch, name): _reshaped(name) for name in ("flatten", "reshape", "squeeze", "unsqueeze", "unflatten")},
}

METHODS: dict[str, Callable[..., Any]] = {
    "size": Value.size,
    "dim": Value.dim,
    "add": _add,
    "add_": _add,
    "sub": _sub,
    "sub_": _sub,
    "mul": _mul,
    "mul_": _mul,
    "div": _div,
    "div_": _div,
    "neg": _neg,
    "mean": _mean,
    "permute": _permute,
    "transpose": _transpose,
    "relu": _relu,
    "relu_": _relu,
    "contiguous": _same,
    "clone": _same,
    **{name: _reshaped(name) for name in ("flatten", "view", "reshape", "squeeze", "unsqueeze", "unflatten")},
}


def rule_for(target: Any, statistics: Statistics | None) -> Callable[..., Any] | None:
    """The rule for a function, the name of a method, or a module; None if there is none."""
    if isinstance(target, nn.modules.batchnorm._BatchNorm):
        return partial(_batch_norm, target, statistics)
    if isinstance(target, nn.Module):
        rule = MODULES.get(parametrize.type_before_parametrizations(target))
        return None if rule is None else partial(rule, target)
    return METHODS.get(target) if isinstance(target, str) else FUNCTIONS.get(target)
