"""Networks from which removed channels are gone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hydraprune.core.errors import PruningError
from hydraprune.core.network import device_of, dtype_of, image_of
from hydraprune.core.plain import evaluating, plain_copy
from hydraprune.masks.coupling import Coupling, coupling_of
from hydraprune.masks.resized import adjusted, own_tensors
from hydraprune.masks.wiring import wired


@torch.no_grad()
def shrink(model: nn.Module, image_shape: tuple[int, int, int]) -> nn.Module:
    """A plain copy of `model`, masks multiplied in, without the channels that do not matter to its logits.

    Such a channel is read by nobody, because the weights that would read it are zero or lead to such channels alone, or
    it is 0 for every image. It goes with its filter, its place in norm layers and the weights that read it; in a
    residual stream it must not matter anywhere. In evaluation mode the logits are the same but for rounding. Layers
    keep their kind and names, and every set of channels keeps at least one. A channel that is constant but not 0, such
    as a removed filter behind batch norm, stays as long as it is read.

    Args:
        model: plain or masked; it is not changed.
        image_shape: (C, H, W) of the images that it takes.

    Raises:
        SpecError: if the model cannot be traced, or does not take such images.
        PruningError: if its forward depends on how many channels it has, so that fewer would change its logits.
    """
    image, plain = image_of(image_shape), plain_copy(model)
    x = torch.rand(2, *image, generator=torch.Generator().manual_seed(0)).to(device_of(plain), dtype_of(plain))
    coupling = coupling_of(wired(plain, image))
    whole = _logits(plain, x)
    needed = needed_channels(plain, coupling)
    keep = needed.clone()
    for each in coupling.sets:
        if not needed[each.channels.start : each.channels.stop].any():
            keep[each.channels.start] = True
    for name, reader in coupling.readers.items():
        read = coupling.kept(name, needed)[reader.inputs]
        plain.get_parameter(name)[(slice(None),) * reader.inputs + (~read,)] = 0
    for path, module in plain.named_modules():
        left = {name: _left(tensor, coupling.kept(name, keep)) for name, tensor in own_tensors(path, module).items()}
        adjusted(path, module, {name: tensor for name, tensor in left.items() if name in coupling.places})
    if not _alike(_logits(plain, x), whole):
        raise PruningError(
            f"{type(model).__name__} computes something else with fewer channels, as its forward depends on their "
            "number; take sizes from the tensors there"
        )
    return plain


def needed_channels(plain: nn.Module, coupling: Coupling) -> Tensor:
    """(channels,) bool: whether anything of a channel reaches the logits of a plain network."""
    needed = torch.zeros(coupling.size + 1, dtype=torch.bool)  # the last is -1: what is no channel
    needed[-1] = True
    for each in coupling.sets:
        needed[each.channels.start : each.channels.stop] = each.reason is not None
    reads = {}
    for name, reader in reversed(list(coupling.readers.items())):
        weight = plain.get_parameter(name)
        nonzero = (weight != 0)[..., None].movedim((reader.outputs, reader.inputs), (0, 1)).flatten(2).any(2).cpu()
        at = coupling.places[name]
        reads[name] = nonzero & ~reader.silent, at[reader.outputs], at[reader.inputs]
    before = -1
    while (count := int(needed.sum())) != before:
        before = count
        for nonzero, outputs, inputs in reads.values():
            needed[inputs[nonzero[needed[outputs]].any(0)]] = True
    return needed[:-1]


def _left(tensor: Tensor, kept: dict[int, Tensor]) -> Tensor:
    for axis, places in kept.items():
        tensor = tensor.index_select(axis, places.nonzero().flatten().to(tensor.device))
    return tensor.clone()


def _logits(model: nn.Module, x: Tensor) -> object:
    with evaluating(model):
        return model(x)


def _alike(one: object, other: object) -> bool:
    """Whether they differ by rounding alone."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return True
    if one.shape != other.shape:
        return False
    slack = 1e3 * torch.finfo(one.dtype).eps * float(other.abs().max())
    return torch.allclose(one, other, rtol=0, atol=slack, equal_nan=True)
