"""Modules without parametrizations, and the canonical names of their tensors."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


def parametrized(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """(canonical name, module, tensor name) of every parametrized tensor, in the model's order.

    A module that has several names comes once under each, as in `state_dict`.
    """
    for path, module in model.named_modules(remove_duplicate=False):
        if parametrize.is_parametrized(module):
            for tensor in module.parametrizations:  # type: ignore[union-attr]
                yield (f"{path}.{tensor}" if path else tensor), module, tensor


def canonical(name: str) -> str:
    """The name that a tensor has in the plain network, for its name inside a parametrized or compiled one."""
    return re.sub(r"\bparametrizations\.(\w+)\.original\b", r"\1", name).replace("_orig_mod.", "")


def plain_copy(model: nn.Module) -> nn.Module:
    """A deep copy in which every parametrized tensor is an ordinary parameter with its current value."""
    with torch.no_grad():
        plain = copy.deepcopy(model)
        values = {name: getattr(module, tensor).detach().clone() for name, module, tensor in parametrized(model)}
    for name, value in values.items():
        path, _, tensor = name.rpartition(".")
        unparametrized(plain.get_submodule(path), {tensor: nn.Parameter(value)})
    return plain


def unparametrized(module: nn.Module, values: Mapping[str, nn.Parameter]) -> None:
    """Take all parametrizations off `module`, in place, and give it ordinary parameters of these names."""
    if parametrize.is_parametrized(module):
        # Not `remove_parametrizations`: it deletes from the class, which deep copies share with the original.
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module.parametrizations
    for tensor, value in values.items():
        module._parameters = {tensor: value, **module._parameters}


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Canonical name -> tensor for parameters and persistent buffers; parametrized ones with their masked value.

    These are the names and values that the plain network's `load_state_dict` takes.
    """
    masked = {name: getattr(module, tensor) for name, module, tensor in parametrized(model)}
    state = {
        name: value
        for name, value in model.state_dict(keep_vars=True).items()
        if ".parametrizations." not in f".{name}"
    }
    return {canonical(name): value.detach() for name, value in {**state, **masked}.items()}


@contextmanager
def once(model: nn.Module) -> Iterator[None]:
    """Inside, every masked weight is computed a single time, with gradient, however many forward passes follow.

    The weights are touched first with gradients on: `parametrize.cached` keeps what it sees first, and a first look
    under `no_grad` would leave scores without gradient, silently. Take no optimizer step inside.
    """
    with parametrize.cached():
        with torch.enable_grad():
            for _, module, tensor in parametrized(model):
                getattr(module, tensor)
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for every submodule inside; each one's own mode is restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def modes_on_failure(model: nn.Module) -> Iterator[None]:
    """Inside, modes may change; if it fails, every submodule gets the mode back that it had."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    except BaseException:
        for module, mode in modes:
            module.training = mode
        raise


@contextmanager
def values_on_failure(model: nn.Module) -> Iterator[None]:
    """Inside, tensors may be given other values; if it fails, each gets back those that it had."""
    tensors = [*model.parameters(), *model.buffers()]
    values = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
        raise
