"""Follows channels through a traced network, operation by operation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from hydraprune.core.errors import SpecError
from hydraprune.core.graph import called, in_place, inside, place, traced
from hydraprune.core.network import device_of, dtype_of
from hydraprune.core.plain import evaluating
from hydraprune.masks.carry import ANYWHERE, LAYERS, rule_for
from hydraprune.masks.channels import Book, Signal
from hydraprune.masks.operation import Layers, Mingled, Operation, found


def wired(model: nn.Module, image_shape: tuple[int, int, int]) -> Book:
    """Who makes, scales and reads each channel of a plain network when it sees images of this shape (C, H, W).

    Raises:
        SpecError: if the network cannot be traced, or does not take such an image.
    """
    with evaluating(model), torch.no_grad():
        return _Walk(model).run(image_shape)


class _Walk:
    def __init__(self, model: nn.Module) -> None:
        self.model, self.root, self.layers = model, nn.Sequential(model), Layers(model)
        self.book = self.layers.book

    def run(self, image_shape: tuple[int, int, int]) -> Book:
        known: dict[fx.Node, Any] = {}
        for node in traced(self.model).nodes:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
            if node.op == "placeholder":
                pixel = torch.zeros((), device=device_of(self.model), dtype=dtype_of(self.model))
                # Two of them, as an axis of length 1 may be squeezed.
                known[node] = Signal.unknown(pixel.expand(2, *image_shape))
            elif node.op == "get_attr":
                known[node] = self._stored(node)
            elif node.op == "output":
                self._fix(found(args, Signal), "they are the network's output")
            else:
                try:
                    known[node] = self._step(node, args, kwargs)
                except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
                    where = place(self.model, node.meta["where"])
                    raise SpecError(f"{where} does not take an image of shape {image_shape}: {error}") from error
        for name, uses in self.book.uses.items():
            if uses > 1 or name in self.layers.shared:
                also = self.layers.shared.get(name)
                why = f"it is {also!r} as well" if also else "the network uses it twice"
                for _, labels in self.book.places[name]:
                    self.book.fix(labels, f"{name!r} is one of their tensors, and {why}")
        return self.book

    def _stored(self, node: fx.Node) -> Tensor:
        owner, _, name = inside(node.target).rpartition(".")
        module = self.model.get_submodule(owner)
        if not hasattr(module, name):
            raise SpecError(
                f"{place(self.model, node.meta['where'])}: a tensor is computed outside of the layers, so channels "
                "cannot be followed; register it as a buffer"
            )
        stored: Tensor = getattr(module, name)
        return stored

    def _step(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        target: Any = self.root.get_submodule(str(node.target)) if node.op == "call_module" else node.target
        step = Operation(target, args, kwargs, node.args)
        values = step.values()
        rule = rule_for(target) if values else None
        if rule not in LAYERS:
            for tensor in step.tensors():  # those of layers are used by something else here
                self.book.uses[self.layers.names.get(id(tensor), "")] += 2
        if not values:
            return step.run(*args, **kwargs)
        try:
            if rule is None or (rule not in ANYWHERE and not (args and isinstance(args[0], Signal))):
                raise Mingled
            result = rule(self.layers, step)
        except Mingled:
            where = place(self.model, node.meta["where"])
            by = where if node.op == "call_module" else f"{called(node)} in {where}"
            self._fix(values, f"{by} mixes them, or counts on their number")
            result = fx.node.map_aggregate(step.stand_in(), _unknown)
        if in_place(node, self.root) and isinstance(result, Signal) and isinstance(args[0], Signal):
            args[0].labels, args[0].const = result.labels, result.const
        return result

    def _fix(self, values: list[Signal], why: str) -> None:
        for value in values:
            self.book.fix(value.labels, why)


def _unknown(value: Any) -> Any:
    return Signal.unknown(value) if isinstance(value, Tensor) else value
