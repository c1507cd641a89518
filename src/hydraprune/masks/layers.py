"""How layers with weights read, scale and make channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hydraprune.masks.channels import Reader, Signal
from hydraprune.masks.operation import Layers, Mingled, Operation, several

Conv, Norm = nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase
PLAIN = (F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_ORDER = {
    False: ("stride", "padding", "dilation", "groups"),
    True: ("stride", "padding", "output_padding", "groups", "dilation"),
}
"""What follows the bias, of plain and of transposed functions."""


def conv(layers: Layers, step: Operation) -> Signal:
    """A convolution; what it groups lives and dies with its group."""
    module = step.target
    if not isinstance(module, nn.Module):
        return _convolved(layers, step.target, *step.args, **step.kwargs)
    own: Any = module
    settings = {name: getattr(own, name) for name in ("stride", "padding", "dilation", "groups")}
    if own.transposed:
        settings["output_padding"] = own.output_padding
    function = (TRANSPOSED if own.transposed else PLAIN)[own.weight.dim() - 3]
    wraps = own.padding_mode != "zeros"
    return _convolved(layers, function, step.args[0], own.weight, own.bias, wraps=wraps, **settings)


def _convolved(
    layers: Layers,
    function: Any,
    input: Signal,
    weight: Tensor,
    bias: Tensor | None = None,
    *rest: Any,
    wraps: bool = False,
    **settings: Any,
) -> Signal:
    transposed, book = function in TRANSPOSED, layers.book
    settings = dict(zip(_ORDER[transposed], rest, strict=False)) | settings
    name, groups = layers.name(weight, Conv), settings.get("groups", 1)
    biases = [] if bias is None else [layers.name(bias, Conv)]
    ends = input.along(1) if len(input.shape) == weight.dim() else None
    owner: Any = layers.owners[name]
    if ends is None or groups != owner.groups:
        raise Mingled
    labels, const = ends
    x = torch.empty(input.shape, dtype=weight.dtype, device="meta")
    shape = function(x, weight.to("meta"), **settings).shape
    if groups == 1:
        made = book.block(name, shape[1])
        reads, makes = (0, 1) if transposed else (1, 0)
        book.use(name, (reads, labels), (makes, made))
        book.readers[name] = Reader(reads, makes, (const == 0).cpu())
    else:
        each = labels.view(groups, -1)
        book.join(each[:, :1], each, f"{name!r} convolves them in groups")
        made = each[:, 0].repeat_interleave(shape[1] // groups)
        book.use(name, (0, each[:, 0].repeat_interleave(weight.shape[0] // groups)))
    for own in biases:
        book.use(own, (0, made))
    # At a border, zeros stand beside a constant, unless that is 0.
    padded = settings.get("padding", 0) != "valid" and any(several(settings.get("padding", 0)))
    even = wraps or not (transposed or padded)
    seen = const if even else torch.where(const == 0, const, torch.nan)
    laid_out = weight.reshape(groups, -1, weight.shape[1], weight[0, 0].numel())
    laid_out = laid_out.transpose(1, 2) if transposed else laid_out
    result = _mapped(laid_out, seen.view(groups, -1)).flatten()
    return _spread(shape, 1, made, result if bias is None else result + bias)


def linear(layers: Layers, step: Operation) -> Signal:
    """A linear layer, which reads features: those of a flattened channel are several."""
    x, book = step.args[0], layers.book
    if isinstance(step.target, nn.Module):
        own: Any = step.target
        weight, bias = own.weight, own.bias
    else:
        weight, bias = step.setting(1, "weight"), step.setting(2, "bias")
    name, biases = layers.name(weight, nn.Linear), [] if bias is None else [layers.name(bias, nn.Linear)]
    ends = x.along(-1)
    if ends is None:
        raise Mingled
    labels, const = ends
    made = book.block(name, len(weight))
    book.use(name, (0, made), (1, labels))
    book.readers[name] = Reader(1, 0, (const == 0).cpu())
    for own_bias in biases:
        book.use(own_bias, (0, made))
    result = _mapped(weight[None, ..., None], const[None])[0]
    return _spread((*x.shape[:-1], len(weight)), -1, made, result if bias is None else result + bias)


def batch_norm(layers: Layers, step: Operation) -> Signal:
    """A norm of each channel by itself."""
    x, own = step.args[0], step.target
    tensors: list[Any] = step.tensors()
    if isinstance(own, nn.Module):
        tensors = [own.running_mean, own.running_var, own.weight, own.bias]
        settled = isinstance(own, nn.modules.batchnorm._BatchNorm) and own.running_mean is not None
    else:
        settled = step.setting(1, "running_mean") is not None and not step.setting(5, "training")
    names = [layers.name(tensor, Norm) for tensor in tensors if isinstance(tensor, Tensor)]
    ends = x.along(1)
    if ends is None or not names:
        raise Mingled
    labels, const = ends
    for name in names:
        layers.book.use(name, (0, labels))
    if not settled:
        return _spread(x.shape, 1, labels, torch.full_like(const, torch.nan))
    ones = [1] * (len(x.shape) - 2)
    return _spread(x.shape, 1, labels, step.run(const.view(1, -1, *ones), *step.args[1:], **step.kwargs).flatten())


def group_norm(layers: Layers, step: Operation) -> Signal:
    """A norm of whole groups of channels."""
    x, own, groups = step.args[0], step.target, step.setting(1, "num_groups")
    tensors: list[Any] = step.tensors()
    if isinstance(own, nn.Module):
        groups, tensors = own.num_groups, [own.weight, own.bias]
    names = [layers.name(tensor, nn.GroupNorm) for tensor in tensors if isinstance(tensor, Tensor)]
    ends = x.along(1)
    if ends is None or not names:
        raise Mingled
    each = ends[0].view(groups, -1)
    layers.book.join(each[:, :1], each, f"{names[0]!r} normalises them in groups")
    for name in names:
        layers.book.use(name, (0, ends[0]))
    return Signal(x.shape, x.labels, torch.full_like(x.const, torch.nan))


def _mapped(weight: Tensor, const: Tensor) -> Tensor:
    """Outputs (G, O) of weights (G, O, I, K) for inputs (G, I); NaN where they depend on the image."""
    hazy = ((weight != 0).any(3) & const.isnan()[:, None]).any(2)
    return (weight.sum(3) * const.nan_to_num()[:, None]).sum(2).masked_fill(hazy, torch.nan)


def _spread(shape: Sequence[int], axis: int, labels: Tensor, const: Tensor) -> Signal:
    """A value that changes along one axis only."""
    ones = [1] * len(shape)
    ones[axis] = shape[axis]
    return Signal(shape, labels.view(ones), const.view(ones))
