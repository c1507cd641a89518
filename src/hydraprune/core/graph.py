"""Networks as graphs of their layers and operations."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx, nn
from torch.nn.utils import parametrize

from hydraprune.core.errors import SpecError


class _Proxy(fx.Proxy):
    """Records `x += y` as in-place, which `fx` by itself takes for `x = x + y`."""

    def _inplace(self, name: str, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", getattr(operator, name), (self, other), {})


_INPLACE = ("iadd", "isub", "imul", "itruediv")
for _name in _INPLACE:
    setattr(_Proxy, f"__{_name}__", lambda self, other, name=_name: self._inplace(name, other))


class _Tracer(fx.Tracer):
    """Every module of `torch.nn` is one step, masked or not; all others are traced through."""

    where = ""

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        kind = parametrize.type_before_parametrizations(module)
        return kind.__module__.startswith("torch.nn") and not issubclass(kind, nn.Sequential)

    def call_module(self, module: nn.Module, *args: Any) -> Any:
        outer, self.where = self.where, self.path_of_module(module)
        result = super().call_module(module, *args)
        self.where = outer
        return result

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["where"] = self.where
        return node

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


def traced(model: nn.Module) -> fx.Graph:
    """The steps of `nn.Sequential(model)`; `node.meta["where"]` is the path there of the module that takes a step.

    Raises:
        SpecError: if the model cannot be traced, naming the module that stands in the way.
    """
    tracer = _Tracer()
    try:
        return tracer.trace(nn.Sequential(model))
    except Exception as error:  # a forward method may refuse symbolic values in any way it likes
        raise SpecError(
            f"{place(model, tracer.where)} cannot be traced: {error}; its forward may not branch on the data, nor "
            "leave the layers and operations of torch"
        ) from error


def inside(target: Any) -> str:
    """The path in `model` of what a graph of it calls `target`."""
    return str(target).partition(".")[2]


def place(model: nn.Module, where: str) -> str:
    """How an error calls the module that takes a step."""
    path = inside(where)
    kind = parametrize.type_before_parametrizations(model.get_submodule(path)).__name__
    return f"{path} ({kind})" if path else kind


def in_place(node: fx.Node, root: nn.Module) -> bool:
    """Whether a step overwrites its first input; `root` is what was traced, `nn.Sequential(model)`."""
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(str(node.target)), "inplace", False))
    name = called(node)
    return name in _INPLACE or name.endswith("_") or bool(node.kwargs.get("inplace"))


def called(node: fx.Node) -> str:
    """The name of the function or method of a step."""
    return str(getattr(node.target, "__name__", node.target))
