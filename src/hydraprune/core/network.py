"""Where the tensors of a network are, and of which type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from hydraprune.core.errors import SpecError
from hydraprune.core.spec import said, whole


def device_of(model: Any) -> torch.device:
    """Where the tensors of `model` are; the CPU if it has none.

    Raises:
        SpecError: if it is no module, or has tensors without values: on the meta device, or of lazy layers.
    """
    if not isinstance(model, nn.Module):
        raise SpecError(f"expected a network (torch.nn.Module), got {said(model)}; give the module itself")
    device = None
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if is_lazy(tensor):
            raise SpecError(f"{name!r} has no shape yet, as its layer is lazy; run the network once on some images")
        if tensor.is_meta:
            raise SpecError(f"{name!r} is on the meta device and has no values; call model.to_empty and load weights")
        device = device or tensor.device
    return device or torch.device("cpu")


def dtype_of(model: nn.Module) -> torch.dtype:
    """The type of its first floating-point parameter; float32 if it has none."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def image_of(shape: Any) -> tuple[int, int, int]:
    """The shape (C, H, W) of an image that an argument says.

    Raises:
        SpecError: for anything but three sizes.
    """
    if not isinstance(shape, Sequence) or len(shape) != 3:
        raise SpecError(f"image_shape is {said(shape)}; give channels, height and width, such as (3, 32, 32)")
    channels, height, width = (whole(size, "image_shape", 1) for size in shape)
    return channels, height, width


def by_name(networks: Mapping[str, nn.Module] | None) -> Mapping[str, nn.Module]:
    """The other networks that an objective or an attack is given, `{"teacher": model}`; none for None.

    Raises:
        SpecError: for anything else, or a network whose tensors have no values.
    """
    if networks is None:
        return {}
    if not isinstance(networks, Mapping):
        raise SpecError(f"networks is {said(networks)}; give them by name, such as {{'teacher': model}}")
    for network in networks.values():
        device_of(network)
    return networks
