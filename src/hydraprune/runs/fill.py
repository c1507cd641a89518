"""The tensors and masks of a checkpoint put into a network that is there already."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hydraprune.core.errors import CheckpointError
from hydraprune.core.network import device_of
from hydraprune.core.plain import canonical, parametrized
from hydraprune.core.spec import some
from hydraprune.masks.source import FixedMask, MaskSource
from hydraprune.masks.view import MaskView


@torch.no_grad()
def fill(
    model: nn.Module, values: Mapping[str, Tensor], masks: Mapping[str, Tensor], prunable: Collection[str], where: str
) -> None:
    """Make `model` the network with these weights and masks, in place; whatever masks it had are replaced.

    Args:
        model: plain, masked or compiled.
        values: canonical name -> tensor, masks applied.
        masks: canonical name of a prunable weight -> mask (bool, its shape).
        prunable: canonical names of all prunable weights.
        where: what the values are, for errors.

    Raises:
        CheckpointError: if they do not fit; the model is then unchanged.
        SpecError: if the model has no memory yet.
    """
    device_of(model)
    view, slots = MaskView(model), _slots(model)
    if problem := misfit(slots, values):
        raise CheckpointError(f"{where} does not fit {type(model).__name__}: {problem}")
    if strangers := sorted(set(prunable) ^ view.modules.keys()):
        raise CheckpointError(
            f"{where} does not fit {type(model).__name__}: {strangers[0]!r} is prunable in one of them only"
        )
    whole = {name: torch.ones_like(source.current()) for name, source in view.sources.items()}
    weights = view.weights()
    view.attach({name: FixedMask(mask.to(weights[name].device)) for name, mask in {**whole, **masks}.items()})
    for name, slot in slots.items():
        slot.copy_(values[name])


def misfit(slots: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> str | None:
    """What keeps `values` from going into `slots`, by name, shape and kind of number; None if nothing does."""
    if missing := [name for name in slots if name not in values]:
        return f"it lacks {some(missing)}"
    if unexpected := [name for name in values if name not in slots]:
        return f"it has {some(unexpected)}, which the network lacks"
    for name, slot in slots.items():
        value = values[name]
        if slot.shape != value.shape:
            return f"{name} is {tuple(value.shape)} there and {tuple(slot.shape)} in the network"
        if (slot.is_floating_point(), slot.is_complex()) != (value.is_floating_point(), value.is_complex()):
            return f"{name} is {value.dtype} there and {slot.dtype} in the network"
    return None


def _slots(model: nn.Module) -> dict[str, Tensor]:
    """Canonical name -> the stored tensor, for parameters and persistent buffers."""
    stored = {}
    for name, module, tensor in parametrized(model):
        sources: Any = module.parametrizations[tensor]  # type: ignore[index]
        if isinstance(sources[0], MaskSource):
            stored[name] = sources.original
    state = model.state_dict(keep_vars=True)
    plain = {name: value for name, value in state.items() if ".parametrizations." not in f".{name}"}
    return {canonical(name): value for name, value in {**plain, **stored}.items()}
