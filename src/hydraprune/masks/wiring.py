"""Follows channels through a traced network, operation by operation. What is not listed here keeps its channels."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from hydraprune.core.errors import SpecError
from hydraprune.core.graph import called, in_place, inside, place, traced
from hydraprune.core.network import device_of, dtype_of
from hydraprune.core.plain import evaluating
from hydraprune.masks.channels import Book, Reader, Value


class Step(NamedTuple):
    """An operation of a network on one image.

    Attributes:
        run: does it, on tensors in place of the values.
        args: values, tensors, numbers.
        kwargs: the same by name.
        written: the arguments as the code has them; a size that it asks for is a node.
    """

    run: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    written: tuple[Any, ...]

    def stand_in(self) -> Any:
        """The result for tensors that are like those of the network."""
        return self.run(*fx.node.map_aggregate(self.args, _stand_in), **fx.node.map_aggregate(self.kwargs, _stand_in))

    def setting(self, position: int, *names: str) -> Any:
        """An argument by its position or one of its names; None without."""
        named = [self.kwargs[name] for name in names if name in self.kwargs]
        return named[0] if named else self.args[position] if len(self.args) > position else None


class Mixed(Exception):
    """An operation that does not treat channels one by one."""


def wired(model: nn.Module, image_shape: tuple[int, int, int]) -> Book:
    """Who makes, scales and reads each channel of a plain network when it sees an image of this shape (C, H, W).

    Raises:
        SpecError: if the network cannot be traced, or does not take such an image.
    """
    with evaluating(model), torch.no_grad():
        return _Walk(model).run(image_shape)


class _Walk:
    def __init__(self, model: nn.Module) -> None:
        self.model, self.root, self.book = model, nn.Sequential(model), Book()
        self.owners: dict[str, nn.Module] = {}
        found: defaultdict[int, list[str]] = defaultdict(list)
        for path, module in model.named_modules():
            for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is not None:
                    own = f"{path}.{name}" if path else name
                    self.owners[own] = module
                    found[id(tensor)].append(own)
        self.names = {tensor: names[0] for tensor, names in found.items()}
        self.shared = {names[0]: names[1] for names in found.values() if len(names) > 1}

    def run(self, image_shape: tuple[int, int, int]) -> Book:
        known: dict[fx.Node, Any] = {}
        for node in traced(self.model).nodes:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
            if node.op == "placeholder":
                device, dtype = device_of(self.model), dtype_of(self.model)
                known[node] = Value.unknown(torch.zeros((), device=device, dtype=dtype).expand(1, *image_shape))
            elif node.op == "get_attr":
                known[node] = self._stored(node)
            elif node.op == "output":
                fx.node.map_aggregate(args, lambda value: self._fix(value, "they are the network's output"))
            else:
                try:
                    known[node] = self._step(node, args, kwargs)
                except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
                    where = place(self.model, node.meta["where"])
                    raise SpecError(f"{where} does not take an image of shape {image_shape}: {error}") from error
        for name, uses in self.book.uses.items():
            if uses > 1 or name in self.shared:
                also = f"it is {self.shared[name]!r} as well" if name in self.shared else "the network uses it twice"
                for _, labels in self.book.places[name]:
                    self.book.fix(labels, f"{name!r} sits there, and {also}")
        return self.book

    def _stored(self, node: fx.Node) -> Tensor:
        owner, _, name = inside(node.target).rpartition(".")
        if not name:
            raise SpecError(
                f"{place(self.model, node.meta['where'])}: a tensor is computed outside of the layers, so channels "
                "cannot be followed; register it as a buffer"
            )
        found: Tensor = getattr(self.model.get_submodule(owner), name)
        return found

    def _step(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        target: Any = self.root.get_submodule(str(node.target)) if node.op == "call_module" else node.target
        run = (
            (lambda first, *rest, **named: getattr(first, target)(*rest, **named))
            if isinstance(target, str)
            else target
        )
        step = Step(run, args, kwargs, node.args)
        inputs = _values((args, kwargs))
        rule = _rule(target) if inputs else None
        if rule not in _PARAMETRIC:
            self._touched((args, kwargs))
        if not inputs:
            return run(*args, **kwargs)
        try:
            if rule is None or (rule not in (_elementwise, _joined) and not (args and isinstance(args[0], Value))):
                raise Mixed
            result = rule(self, step, target)
        except Mixed:
            by = place(self.model, node.meta["where"]) + ("" if node.op == "call_module" else f", {called(node)},")
            for value in inputs:
                self._fix(value, f"{by} mixes them, or counts on their number")
            result = fx.node.map_aggregate(step.stand_in(), lambda part: _unknown(part))
        if in_place(node, self.root) and isinstance(result, Value) and isinstance(args[0], Value):
            args[0].labels, args[0].const = result.labels, result.const
        return result

    def tensor(self, value: Any, kind: type[nn.Module] | tuple[type[nn.Module], ...]) -> str:
        """The name of a tensor of a layer of this kind."""
        name = self.names.get(id(value), "")
        owner = self.owners.get(name)
        if not isinstance(owner, kind) or owner._forward_hooks or owner._forward_pre_hooks:
            raise Mixed
        return name

    def _fix(self, value: Any, why: str) -> None:
        if isinstance(value, Value):
            self.book.fix(value.labels, why)

    def _touched(self, values: Any) -> None:
        """Note tensors of layers that something else than their layer uses."""

        def note(value: Any) -> None:
            if isinstance(value, Tensor) and id(value) in self.names:
                self.book.uses[self.names[id(value)]] += 2

        fx.node.map_aggregate(values, note)


def _stand_in(value: Any) -> Any:
    return value.stand_in() if isinstance(value, Value) else value


def _unknown(value: Any) -> Any:
    return Value.unknown(value) if isinstance(value, Tensor) else value


def _values(args: Any) -> list[Value]:
    found: list[Value] = []
    fx.node.map_aggregate(args, lambda value: found.append(value) if isinstance(value, Value) else None)
    return found


# Layers with weights.


def _conv(walk: _Walk, step: Step, target: Any) -> Value:
    if isinstance(target, nn.Module):
        settings = {name: getattr(target, name) for name in ("stride", "padding", "dilation", "groups")}
        if target.transposed:
            settings["output_padding"] = target.output_padding
        wraps = target.padding_mode != "zeros"
        found = _convolved(
            walk,
            _OF_MODULE[target.transposed, target.weight.dim()],
            wraps,
            step.args[0],
            target.weight,
            target.bias,
            **settings,
        )
    else:
        found = _convolved(walk, target, False, *step.args, **step.kwargs)
    return found


def _convolved(
    walk: _Walk,
    function: Any,
    wraps: bool,
    input: Value,
    weight: Tensor,
    bias: Tensor | None = None,
    *rest: Any,
    **settings: Any,
) -> Value:
    transposed = function in _TRANSPOSED
    names = (
        ("stride", "padding", "output_padding", "groups", "dilation")
        if transposed
        else ("stride", "padding", "dilation", "groups")
    )
    settings = dict(zip(names, rest, strict=False)) | settings
    name, groups = walk.tensor(weight, nn.modules.conv._ConvNd), settings.get("groups", 1)
    own_bias = [] if bias is None else [walk.tensor(bias, nn.modules.conv._ConvNd)]
    ends = input.along(1) if len(input.shape) == weight.dim() else None
    owner: Any = walk.owners[name]
    if ends is None or groups != owner.groups:
        raise Mixed
    labels, const = ends
    shape = function(
        *(
            t if t is None else t.to("meta")
            for t in (torch.empty(input.shape, dtype=weight.dtype, device="meta"), weight, bias)
        ),
        **settings,
    ).shape
    if groups == 1:
        made = walk.book.block(name, shape[1])
        reads, makes = (0, 1) if transposed else (1, 0)
        walk.book.use(name, (reads, labels), (makes, made))
        walk.book.readers[name] = Reader(reads, makes, (const == 0).cpu())
    else:
        each = labels.view(groups, -1)
        walk.book.join(each[:, :1], each, f"{name!r} convolves them in groups")
        made = each[:, 0].repeat_interleave(shape[1] // groups)
        walk.book.use(name, (0, each[:, 0].repeat_interleave(weight.shape[0] // groups)))
    for own in own_bias:
        walk.book.use(own, (0, made))
    # At a border, zeros stand beside a constant, unless that is 0.
    even = not transposed and (
        wraps or settings.get("padding", 0) in (0, "valid") or not any(_tuple(settings["padding"]))
    )
    seen = const if even else torch.where(const == 0, const, torch.nan)
    laid_out = weight.reshape(groups, -1, weight.shape[1], weight[0, 0].numel())
    laid_out = laid_out.transpose(1, 2) if transposed else laid_out
    result = _mapped(laid_out.sum(3), (laid_out != 0).any(3), seen.view(groups, -1)).flatten()
    result = result if bias is None else result + bias
    return _spread(shape, 1, made, result)


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _mapped(weight: Tensor, reads: Tensor, const: Tensor) -> Tensor:
    """Outputs (G, O) of weights (G, O, I) for inputs (G, I); NaN where they depend on the image."""
    hazy = (reads & const.isnan()[:, None]).any(2)
    return (weight * const.nan_to_num()[:, None]).sum(2).masked_fill(hazy, torch.nan)


def _spread(shape: Any, axis: int, labels: Tensor, const: Tensor) -> Value:
    """A value that changes along one axis only."""
    ones = [1] * len(shape)
    ones[axis] = shape[axis]
    return Value(shape, labels.view(ones), const.view(ones))


def _linear(walk: _Walk, step: Step, target: Any) -> Value:
    if isinstance(target, nn.Module):
        x, weight, bias = step.args[0], target.weight, target.bias
    else:
        x, weight, bias = (step.setting(place, name) for place, name in enumerate(("input", "weight", "bias")))
    name, own_bias = walk.tensor(weight, nn.Linear), [] if bias is None else [walk.tensor(bias, nn.Linear)]
    ends = x.along(-1)
    if ends is None:
        raise Mixed
    labels, const = ends
    made = walk.book.block(name, len(weight))
    walk.book.use(name, (0, made), (1, labels))
    walk.book.readers[name] = Reader(1, 0, (const == 0).cpu())
    for own in own_bias:
        walk.book.use(own, (0, made))
    result = _mapped(weight[None], weight[None] != 0, const[None])[0]
    return _spread((*x.shape[:-1], len(weight)), -1, made, result if bias is None else result + bias)


def _batch_norm(walk: _Walk, step: Step, target: Any) -> Value:
    """Of each channel by itself."""
    x = step.args[0]
    if isinstance(target, nn.Module):
        tensors = [target.running_mean, target.running_var, target.weight, target.bias]
        settled = isinstance(target, nn.modules.batchnorm._BatchNorm) and target.running_mean is not None
    else:
        tensors = [*step.args[1:], *step.kwargs.values()]
        settled = step.setting(1, "running_mean") is not None and not step.setting(5, "training")
    names = [walk.tensor(t, nn.modules.batchnorm._NormBase) for t in tensors if isinstance(t, Tensor)]
    ends = x.along(1)
    if ends is None or not names:
        raise Mixed
    for name in names:
        walk.book.use(name, (0, ends[0]))
    const = torch.full_like(ends[1], torch.nan)
    if settled:
        const = step.run(ends[1].view(1, -1, *[1] * (len(x.shape) - 2)), *step.args[1:], **step.kwargs).flatten()
    return _spread(x.shape, 1, ends[0], const)


def _group_norm(walk: _Walk, step: Step, target: Any) -> Value:
    """Of whole groups of channels."""
    x = step.args[0]
    if isinstance(target, nn.Module):
        groups, tensors = target.num_groups, [target.weight, target.bias]
    else:
        groups, *tensors = (
            step.setting(place, name) for place, name in ((1, "num_groups"), (2, "weight"), (3, "bias"))
        )
    names = [walk.tensor(t, nn.GroupNorm) for t in tensors if t is not None]
    ends = x.along(1)
    if ends is None or not names:
        raise Mixed
    each = ends[0].view(groups, -1)
    walk.book.join(each[:, :1], each, f"{names[0]!r} normalises them in groups")
    for name in names:
        walk.book.use(name, (0, ends[0]))
    return Value(x.shape, x.labels, torch.full_like(x.const, torch.nan))


# Operations.


def _elementwise(walk: _Walk, step: Step, target: Any) -> Value:
    values, others = _values((step.args, step.kwargs)), []
    fx.node.map_aggregate((step.args, step.kwargs), lambda x: others.append(x) if isinstance(x, Tensor) else None)
    shape = torch.broadcast_shapes(*(x.shape for x in (*values, *others)))
    labels = values[0].labels
    for value in values:
        # A gate that all channels share is read by them, and is none of them.
        here = [1] * (len(shape) - len(value.shape)) + list(value.shape)
        if any(
            one != many and any(_differs(v, axis, shape) for v in values)
            for axis, (one, many) in enumerate(zip(here, shape, strict=True))
        ):
            walk.book.fix(value.labels, "all channels of another tensor meet it")
        elif value is not values[0]:
            why = "what cannot be removed is joined to it"
            walk.book.join(labels, value.labels, why)
            labels = labels.expand(torch.broadcast_shapes(labels.shape, value.labels.shape))
    for tensor in others:
        if any(
            size > 1 and any(_differs(v, axis - tensor.dim() + len(shape), shape) for v in values)
            for axis, size in enumerate(tensor.shape)
        ):
            for value in values:
                walk.book.fix(value.labels, "it meets a tensor that belongs to no layer")
    run = _OUT_OF_PLACE.get(target, step.run)
    args, kwargs = fx.node.map_aggregate((step.args, step.kwargs), lambda x: x.known() if isinstance(x, Value) else x)
    const = run(*args, **kwargs)
    hazy = [value.const.isnan() for value in values]
    const = torch.where(torch.stack(torch.broadcast_tensors(*hazy)).any(0), torch.nan, const)
    if target in _PRODUCTS:
        for value in values:
            const = torch.where(value.const == 0, 0, const)
    return Value(shape, labels, const)


def _differs(value: Value, axis: int, shape: torch.Size) -> bool:
    """Whether the channels of a value differ along this axis of the shape that it is broadcast to."""
    own = axis - len(shape) + len(value.shape)
    return own >= 0 and value.varies(own)


def _window(walk: _Walk, step: Step, target: Any) -> Value:
    """Something that moves over each channel by itself: pooling, padding, interpolation."""
    x = step.args[0]
    ends, result = x.along(1), step.stand_in()
    if ends is None or not isinstance(result, Tensor) or result.shape[:2] != x.shape[:2] or len(_values(step.args)) > 1:
        raise Mixed
    hazy = x.const.isnan().flatten(2).any(2) if len(x.shape) > 2 else x.const.isnan()
    hazy = hazy.view(*hazy.shape, *[1] * (result.dim() - 2))
    return Value(result.shape, x.labels, torch.where(hazy, torch.nan, result))


def _reduced(walk: _Walk, step: Step, target: Any) -> Value:
    """Something over axes along which channels do not change."""
    x, axes = step.args[0], step.setting(1, "dim", "axis")
    if axes is None or not isinstance(x, Value) or any(x.varies(axis) for axis in _tuple(axes)):
        raise Mixed
    result = step.stand_in()
    if not isinstance(result, Tensor):
        raise Mixed
    hazy, labels = x.const.isnan(), x.labels
    if result.dim() < len(x.shape):
        hazy, labels = hazy.amax(_tuple(axes)), labels.amax(_tuple(axes))
    else:
        hazy = hazy.amax(_tuple(axes), keepdim=True)
    return Value(result.shape, labels, torch.where(hazy, torch.nan, result))


def _moved(walk: _Walk, step: Step, target: Any) -> Any:
    """Numbers that change their place."""
    x, *rest = step.args
    if not isinstance(x, Value):
        raise Mixed
    return _shaped(
        step.run(whole, *rest, **step.kwargs) for whole in (x.labels.expand(x.shape), x.const.expand(x.shape))
    )


def _shaped(both: Any) -> Any:
    labels, const = both
    if isinstance(labels, Tensor):
        return Value(labels.shape, labels, const)
    return tuple(_shaped(pair) for pair in zip(labels, const, strict=True))


def _sized(walk: _Walk, step: Step, target: Any) -> Value:
    """Numbers that are laid out anew, in sizes that follow from others where channels change."""
    result: Value = _moved(walk, step, target)
    if isinstance(target, nn.Unflatten):
        start, sizes = target.dim, tuple(target.unflattened_size)
    elif _name(target) == "unflatten":
        start, sizes = step.setting(1, "dim"), _tuple(step.written[2] if len(step.written) > 2 else ())
    else:
        sizes = step.written[1:]
        sizes = tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else tuple(sizes)
        start = 0
    if step.kwargs and not isinstance(target, nn.Module):
        raise Mixed
    start %= len(step.args[0].shape)
    for axis, size in enumerate(sizes, start):
        if result.varies(axis) and size != -1 and not isinstance(size, fx.Node):
            raise Mixed
    return result


def _squeezed(walk: _Walk, step: Step, target: Any) -> Any:
    """Axes of length 1 that go; one of channels may become one."""
    axes = step.setting(1, "dim")
    if axes is None or any(step.args[0].varies(axis) for axis in _tuple(axes)):
        raise Mixed
    return _moved(walk, step, target)


def _cut(walk: _Walk, step: Step, target: Any) -> Any:
    """Parts along an axis on which channels do not change."""
    default = 0 if _name(target) == "unbind" else None
    position = 1 if default == 0 else 2
    axis = step.setting(position, "dim") or 0
    if step.args[0].varies(axis):
        raise Mixed
    return _moved(walk, step, target)


def _taken(walk: _Walk, step: Step, target: Any) -> Any:
    """`x[...]` with numbers and slices, along axes on which channels do not change."""
    x, index = step.args
    if not isinstance(x, Value):
        raise Mixed
    index = index if isinstance(index, tuple) else (index,)
    used = sum(part is not None and part is not Ellipsis for part in index)
    axis = 0
    for part in index:
        if part is Ellipsis:
            axis += len(x.shape) - used
        elif part is not None:
            if not isinstance(part, int | slice) or (part != slice(None) and x.varies(axis)):
                raise Mixed
            axis += 1
    return _moved(walk, step, target)


def _joined(walk: _Walk, step: Step, target: Any) -> Value:
    """Tensors side by side; those that do not depend on the image have no channels."""
    parts, axis = step.setting(0, "tensors"), step.setting(1, "dim", "axis") or 0
    parts = [part if isinstance(part, Value) else Value.unknown(part) for part in parts]
    labels, const = (
        step.run([tensor.expand(part.shape) for part, tensor in zip(parts, side, strict=True)], axis)
        for side in ([part.labels for part in parts], [part.const for part in parts])
    )
    return Value(labels.shape, labels, const)


def _asked(walk: _Walk, step: Step, target: Any) -> Any:
    """What is known of a tensor by its shape and type."""
    return step.stand_in()


def _attribute(walk: _Walk, step: Step, target: Any) -> Any:
    """The same, or the tensor itself in another way."""
    result = step.stand_in()
    if isinstance(result, Tensor):
        raise Mixed
    return result


def _name(target: Any) -> str:
    """The name of a function or method."""
    return target if isinstance(target, str) else str(getattr(target, "__name__", ""))


Rule = Callable[[_Walk, Step, Any], Any]
_PARAMETRIC: tuple[Rule | None, ...] = (_conv, _linear, _batch_norm, _group_norm)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_PLAIN = (F.conv1d, F.conv2d, F.conv3d)
_OF_MODULE = {
    (transposed, dims): function
    for transposed, functions in ((False, _PLAIN), (True, _TRANSPOSED))
    for dims, function in enumerate(functions, 3)
}
_BINARY = ("add", "sub", "mul", "truediv", "div")
_OUT_OF_PLACE: Mapping[Any, Any] = {
    **{getattr(operator, f"i{name}"): getattr(operator, name) for name in _BINARY if hasattr(operator, f"i{name}")},
    **{f"{name}_": getattr(torch, name) for name in _BINARY if hasattr(torch, name)},
}
_PRODUCTS = (operator.mul, operator.imul, torch.mul, "mul", "mul_")

_NAMES: dict[Rule, str] = {
    _elementwise: """
        add sub mul truediv div iadd isub imul itruediv multiply subtract divide maximum minimum pow
        relu relu6 hardtanh leaky_relu elu selu celu gelu silu mish hardswish hardsigmoid sigmoid tanh softplus softsign
        logsigmoid hardshrink softshrink tanhshrink threshold abs neg exp log sqrt rsqrt square sin cos clamp clip
        dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout float double half bfloat16 to
    """,
    _window: """
        max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool1d lp_pool2d interpolate pad
        adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
        adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
    """,
    _reduced: "mean sum amax amin softmax log_softmax logsumexp var std",
    _moved: "flatten permute transpose swapaxes movedim unsqueeze contiguous clone detach flip roll",
    _squeezed: "squeeze",
    _sized: "view reshape unflatten expand",
    _cut: "chunk split unbind tensor_split",
    _joined: "cat concat concatenate",
    _asked: "size dim ndimension numel new_zeros new_ones new_empty",
}
_METHODS: dict[str, Rule] = {
    name + tail: rule for rule, names in _NAMES.items() for name in names.split() for tail in ("", "_")
}
_FUNCTIONS: dict[Any, Rule] = {
    getattr(place, name): rule
    for name, rule in _METHODS.items()
    for place in (torch, F, operator)
    if hasattr(place, name)
} | {
    operator.getitem: _taken,
    getattr: _attribute,
    F.linear: _linear,
    F.batch_norm: _batch_norm,
    F.group_norm: _group_norm,
    **dict.fromkeys((*_PLAIN, *_TRANSPOSED), _conv),
}
_OF_KIND: tuple[tuple[Any, Rule], ...] = (
    (nn.modules.conv._ConvNd, _conv),
    (nn.Linear, _linear),
    (nn.modules.batchnorm._NormBase, _batch_norm),
    (nn.GroupNorm, _group_norm),
    (nn.Flatten, _moved),
    (nn.Unflatten, _sized),
    (nn.Identity, _elementwise),
)
_IN_MODULE: Mapping[str, Rule] = {
    "activation": _elementwise,
    "dropout": _elementwise,
    "pooling": _window,
    "padding": _window,
    "upsampling": _window,
}
_NOT_ELEMENTWISE = (
    nn.MultiheadAttention, nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d, nn.GLU,
)  # fmt: skip


def _rule(target: Any) -> Rule | None:
    """What an operation does with channels; None if that is not known."""
    if isinstance(target, str):
        return _METHODS.get(target)
    if not isinstance(target, nn.Module):
        return _FUNCTIONS.get(target)
    if target._forward_hooks or target._forward_pre_hooks or isinstance(target, _NOT_ELEMENTWISE):
        return None
    if isinstance(target, nn.PReLU) and target.num_parameters > 1:
        return None
    for kind, rule in _OF_KIND:
        if isinstance(target, kind):
            return rule
    return _IN_MODULE.get(type(target).__module__.removeprefix("torch.nn.modules."))
