"""Layers that are given other sizes, in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hydraprune.core.errors import CheckpointError
from hydraprune.core.network import image_of
from hydraprune.core.plain import evaluating
from hydraprune.core.spec import some

Shape = tuple[int, ...]


def resize(model: nn.Module, shapes: Mapping[str, Sequence[int]], image_shape: tuple[int, int, int]) -> None:
    """Give the layers of `model` the sizes that they have in a shrunk one, in place, so that it takes its state dict.

    Layers keep their kind; only channels can be fewer, and whole groups of convolutions and norms. Tensors that change
    are new and empty, on their device, and none is larger than the one that is there.

    Args:
        model: plain, as it was made; on the meta device or any other.
        shapes: name in its state dict -> shape there, of every tensor.
        image_shape: (C, H, W) of the images that it takes.

    Raises:
        CheckpointError: if a tensor is missing, unknown, or of a size that cannot be; the model is then unchanged. If
            layers do not fit together, it is of no more use.
        SpecError: for a shape that is none.
    """
    image, here = image_of(image_shape), dict(model.state_dict(keep_vars=True))
    if strangers := sorted(shapes.keys() ^ here.keys()):
        raise CheckpointError(f"{some(strangers)} is in one of network and checkpoint only; make the network again")
    sizes = {name: tuple(shapes[name]) for name in here}
    for name, tensor in here.items():
        _possible(name, tuple(tensor.shape), sizes[name])
    plans = []
    for path, module in model.named_modules():
        before = own_tensors(path, module)
        after = {name: sizes[name] for name in before if name in sizes}
        if any(after[name] != tuple(before[name].shape) for name in after):
            plans.append((module, before, after, _settings(module, before, after)))
    for module, before, after, settings in plans:
        for name, shape in after.items():
            replaced(module, name.rpartition(".")[2], before[name].new_empty(shape))
        vars(module).update(settings)
    _try(model, image)


def adjusted(path: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put these in place of tensors of a layer, by canonical name, and set its sizes to theirs."""
    before = own_tensors(path, module)
    settings = _settings(
        module, before, {name: tuple(tensors.get(name, tensor).shape) for name, tensor in before.items()}
    )
    for name, tensor in tensors.items():
        replaced(module, name.rpartition(".")[2], tensor)
    vars(module).update(settings)


def replaced(module: nn.Module, name: str, value: Tensor) -> None:
    """Put `value` in place of a parameter or buffer."""
    if name in module._parameters:
        value = nn.Parameter(value, requires_grad=bool(getattr(module, name).requires_grad))
    setattr(module, name, value)


def own_tensors(path: str, module: nn.Module) -> dict[str, Tensor]:
    """Canonical name -> tensor, of a layer itself."""
    tensors = {**module._parameters, **module._buffers}
    return {f"{path}.{name}" if path else name: tensor for name, tensor in tensors.items() if tensor is not None}


def _possible(name: str, before: Shape, after: Shape) -> None:
    if len(before) != len(after) or any(not 1 <= new <= old for old, new in zip(before, after, strict=True)):
        raise CheckpointError(
            f"{name!r} is {after} there and {before} in the network; sizes are at least 1, and none grows"
        )


def _settings(module: nn.Module, before: Mapping[str, Tensor], after: Mapping[str, Shape]) -> dict[str, Any]:
    """The attributes of a layer of which the tensors have these shapes.

    Raises:
        CheckpointError: naming the tensor that cannot have its shape.
    """
    of = {name.rpartition(".")[2]: name for name in after}
    if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
        weight = of["weight"]
        old, new = tuple(before[weight].shape), after[weight]
        grouped, transposed = getattr(module, "groups", 1), getattr(module, "transposed", False)
        # Of a grouped convolution, each group stays as it is.
        each = old[0] // grouped
        if new[2:] != old[2:] or (grouped > 1 and (new[1] != old[1] or new[0] % each)):
            raise _impossible(weight, old, new)
        groups = new[0] // each if grouped > 1 else 1
        ends = (new[0], new[1] * groups)
        outputs, inputs = reversed(ends) if transposed else ends
        _same(of, after, ["bias"], (outputs,), weight)
        if isinstance(module, nn.Linear):
            return {"in_features": inputs, "out_features": outputs}
        return {"in_channels": inputs, "out_channels": outputs, "groups": groups}
    if isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm) and of.keys() - {"num_batches_tracked"}:
        first, *rest = [name for name in ("weight", "running_mean") if name in of]
        (size,) = after[of[first]]
        _same(of, after, ["bias", "running_var", *rest], (size,), of[first])
        if isinstance(module, nn.GroupNorm):
            each = module.num_channels // module.num_groups
            if size % each:
                raise _impossible(of[first], tuple(before[of[first]].shape), after[of[first]])
            return {"num_channels": size, "num_groups": size // each}
        return {"num_features": size}
    for name, shape in after.items():
        if tuple(before[name].shape) != shape:
            raise _impossible(name, tuple(before[name].shape), shape)
    return {}


def _same(of: Mapping[str, str], after: Mapping[str, Shape], tensors: list[str], shape: Shape, like: str) -> None:
    for tensor in tensors:
        if tensor in of and after[of[tensor]] != shape:
            raise CheckpointError(
                f"{of[tensor]!r} is {after[of[tensor]]} and {like!r} is {after[like]}: they do not fit"
            )


def _impossible(name: str, before: Shape, after: Shape) -> CheckpointError:
    return CheckpointError(f"{name!r} is {after} there and {before} in the network; only channels can be fewer")


def _try(model: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """See that the layers fit together, without memory."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    sketch = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    dtype = next((tensor.dtype for tensor in sketch.values() if tensor.is_floating_point()), torch.float32)
    try:
        with evaluating(model), torch.no_grad():
            torch.func.functional_call(model, sketch, (torch.empty(1, *image_shape, device="meta", dtype=dtype),))
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"its layers do not fit together: {error}") from None
