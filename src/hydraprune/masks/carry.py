"""How operations without weights carry channels, and which one is which. What is not listed keeps its channels."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from hydraprune.masks.channels import FIXED, Signal
from hydraprune.masks.layers import PLAIN, TRANSPOSED, Conv, Norm, batch_norm, conv, group_norm, linear
from hydraprune.masks.operation import Layers, Mingled, Operation, several

Rule = Callable[[Layers, Operation], Any]


def elementwise(layers: Layers, step: Operation) -> Signal:
    """Numbers at the same place: their channels live and die together."""
    values, book = step.values(), layers.book
    shape = torch.broadcast_shapes(*(x.shape for x in values), *(x.shape for x in step.tensors()))
    if any(_shared(tensor.shape, [1] * len(shape), values) for tensor in step.tensors()):
        for value in values:
            book.fix(value.labels, "they meet a tensor that belongs to no layer")
    own: list[Tensor] = []
    for value in values:
        if _shared(shape, [1] * (len(shape) - len(value.shape)) + list(value.shape), values):
            # A gate that many channels share is none of them.
            book.fix(value.labels, "many channels of another tensor meet each of them")
        else:
            own.append(value.labels)
    for labels in own[1:]:
        book.join(own[0], labels, "what cannot be removed is joined to them")
    labels = torch.broadcast_tensors(*own, torch.full([1] * len(shape), FIXED))[0]
    work = Operation(_OUT_OF_PLACE.get(step.target, step.target), step.args, step.kwargs, step.written)
    const = work.again(Signal.known)
    hazy = torch.broadcast_tensors(*(value.const.isnan() for value in values))
    const = torch.where(torch.stack(hazy).any(0), torch.nan, const)
    if step.target in _PRODUCTS:
        for value in values:
            const = torch.where(value.const == 0, 0, const)
    return Signal(shape, labels, const)


def _shared(longer: Sequence[int], shorter: Sequence[int], values: list[Signal]) -> bool:
    """Whether channels of a value differ along an axis, counted from the last, on which one is longer than another."""
    axes = [axis - len(longer) for axis, size in enumerate(longer) if size != shorter[axis - len(longer)]]
    return any(-axis <= len(value.shape) and value.varies(axis) for axis in axes for value in values)


def window(layers: Layers, step: Operation) -> Signal:
    """Something that moves over each channel by itself: pooling, padding, interpolation."""
    x, result = step.args[0], step.stand_in()
    if (
        x.along(1) is None
        or not isinstance(result, Tensor)
        or result.shape[:2] != x.shape[:2]
        or len(step.values()) > 1
    ):
        raise Mingled
    hazy = x.const.isnan().reshape(*x.const.shape[:2], -1).any(2)
    return Signal(result.shape, _trailing(x.labels, result), torch.where(_trailing(hazy, result), torch.nan, result))


def _trailing(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor.reshape(*tensor.shape[:2], *[1] * (like.dim() - 2))


def reduced(layers: Layers, step: Operation) -> Signal:
    """Something over axes along which channels do not change."""
    x, axes = step.args[0], step.setting(1, "dim", "axis")
    result = step.stand_in()
    if axes is None or any(x.varies(axis) for axis in several(axes)) or not isinstance(result, Tensor):
        raise Mingled
    axes, stays = several(axes), result.dim() == len(x.shape)
    hazy = x.const.isnan().sum(axes, keepdim=stays) > 0
    return Signal(result.shape, x.labels.amax(axes, keepdim=stays), torch.where(hazy, torch.nan, result))


def moved(layers: Layers, step: Operation) -> Any:
    """Numbers that change their place."""
    labels, const = step.again(lambda x: x.labels.expand(x.shape)), step.again(lambda x: x.const.expand(x.shape))
    return _paired(labels, const)


def _paired(labels: Any, const: Any) -> Any:
    if isinstance(labels, Tensor):
        return Signal(labels.shape, labels, const)
    return tuple(_paired(*pair) for pair in zip(labels, const, strict=True))


def sized(layers: Layers, step: Operation) -> Signal:
    """Numbers that are laid out anew, in sizes that follow from others where channels change."""
    result: Signal = moved(layers, step)
    start, sizes = 0, list(step.written[1:])
    if isinstance(step.target, nn.Unflatten):
        start, sizes = int(step.target.dim), [*step.target.unflattened_size]
    elif _named(step.target) == "unflatten":
        start, *sizes = sizes
    if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
        sizes = [*sizes[0]]
    start %= len(step.args[0].shape)
    literal = [axis for axis, size in enumerate(sizes, start) if size != -1 and not isinstance(size, fx.Node)]
    if step.kwargs or any(result.varies(axis) for axis in literal):
        raise Mingled
    return result


def squeezed(layers: Layers, step: Operation) -> Any:
    """Axes of length 1 that go; one of many channels may become one."""
    axes = step.setting(1, "dim")
    if axes is None or any(step.args[0].varies(axis) for axis in several(axes)):
        raise Mingled
    return moved(layers, step)


def cut(layers: Layers, step: Operation) -> Any:
    """Parts along an axis on which channels do not change."""
    if step.args[0].varies(step.setting(1 if _named(step.target) == "unbind" else 2, "dim") or 0):
        raise Mingled
    return moved(layers, step)


def taken(layers: Layers, step: Operation) -> Any:
    """`x[...]` with numbers and slices, along axes on which channels do not change."""
    x, index = step.args[0], several(step.args[1])
    axis = 0
    for part in index:
        if part is Ellipsis:
            axis = len(x.shape) - sum(part is not None and part is not Ellipsis for part in index) + axis
        elif part is not None:
            whole = isinstance(part, slice) and part == slice(None)
            if not isinstance(part, int | slice) or (x.varies(axis) and not whole):
                raise Mingled
            axis += 1
    return moved(layers, step)


def joined(layers: Layers, step: Operation) -> Signal:
    """Tensors side by side; those that do not depend on the image have no channels."""
    parts = [part if isinstance(part, Signal) else Signal.unknown(part) for part in step.setting(0, "tensors")]
    labels, const = (
        step.run([getattr(part, of).expand(part.shape) for part in parts], step.setting(1, "dim", "axis") or 0)
        for of in ("labels", "const")
    )
    return Signal(labels.shape, labels, const)


def asked(layers: Layers, step: Operation) -> Any:
    """What is known of a tensor by its shape and type."""
    return step.stand_in()


def attribute(layers: Layers, step: Operation) -> Any:
    """The same, but for the tensor itself in another way."""
    result = step.stand_in()
    if isinstance(result, Tensor):
        raise Mingled
    return result


def _named(target: Any) -> str:
    return target if isinstance(target, str) else str(getattr(target, "__name__", ""))


LAYERS: tuple[Rule, ...] = (conv, linear, batch_norm, group_norm)
"""Rules for operations with tensors of layers."""
ANYWHERE: tuple[Rule, ...] = (elementwise, joined)
"""Rules for operations of which the first argument may be no value."""

_BINARY = ("add", "sub", "mul", "truediv", "div")
_OUT_OF_PLACE: Mapping[Any, Any] = {
    **{getattr(operator, f"i{name}"): getattr(operator, name) for name in _BINARY if hasattr(operator, f"i{name}")},
    **{f"{name}_": getattr(torch, name) for name in _BINARY if hasattr(torch, name)},
}
_PRODUCTS = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
_NAMES: dict[Rule, str] = {
    elementwise: """
        add sub mul truediv div iadd isub imul itruediv multiply subtract divide maximum minimum pow
        relu relu6 hardtanh leaky_relu elu selu celu gelu silu mish hardswish hardsigmoid sigmoid tanh softplus softsign
        logsigmoid hardshrink softshrink tanhshrink threshold abs neg exp log sqrt rsqrt square sin cos clamp clip
        dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout float double half bfloat16 to
    """,
    window: """
        max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool1d lp_pool2d interpolate pad
        adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
        adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
    """,
    reduced: "mean sum amax amin softmax log_softmax logsumexp var std",
    moved: "flatten permute transpose swapaxes movedim unsqueeze contiguous clone detach flip",
    squeezed: "squeeze",
    sized: "view reshape unflatten expand",
    cut: "chunk split unbind tensor_split",
    joined: "cat concat concatenate",
    asked: "size dim ndimension numel new_zeros new_ones new_empty",
}
_METHODS = {name + tail: rule for rule, names in _NAMES.items() for name in names.split() for tail in ("", "_")}
_FUNCTIONS: dict[Any, Rule] = {
    **{getattr(of, n): rule for n, rule in _METHODS.items() for of in (torch, F, operator) if hasattr(of, n)},
    operator.getitem: taken,
    getattr: attribute,
    F.linear: linear,
    F.batch_norm: batch_norm,
    F.group_norm: group_norm,
    **dict.fromkeys((*PLAIN, *TRANSPOSED), conv),
}
_MODULES: tuple[tuple[Any, Rule], ...] = (
    (Conv, conv),
    (nn.Linear, linear),
    (Norm, batch_norm),
    (nn.GroupNorm, group_norm),
    (nn.Flatten, moved),
    (nn.Unflatten, sized),
    (nn.Identity, elementwise),
)
_IN_FILE = {
    "activation": elementwise,
    "dropout": elementwise,
    "pooling": window,
    "padding": window,
    "upsampling": window,
}
"""Of `torch.nn.modules`."""
_NOT_ELEMENTWISE = (nn.MultiheadAttention, nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d, nn.GLU)


def rule_for(target: Any) -> Rule | None:
    """The rule for a function, the name of a method, or a module of torch; None if there is none."""
    if isinstance(target, str):
        return _METHODS.get(target)
    if not isinstance(target, nn.Module):
        return _FUNCTIONS.get(target)
    several_slopes = isinstance(target, nn.PReLU) and target.num_parameters > 1
    if target._forward_hooks or target._forward_pre_hooks or isinstance(target, _NOT_ELEMENTWISE) or several_slopes:
        return None
    for kind, rule in _MODULES:
        if isinstance(target, kind):
            return rule
    return _IN_FILE.get(type(target).__module__.removeprefix("torch.nn.modules."))
