"""Networks as graphs of operations, traced once for each model."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from hydraprune.core.errors import SpecError

_INPLACE = ("iadd", "isub", "imul", "itruediv")


class _Proxy(fx.Proxy):
    """Records `x += y` as in-place, which `fx` by itself takes for `x = x + y`."""

    def _inplace(self, name: str, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", getattr(operator, name), (self, other), {})


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

    def proxy(self, node: fx.Node) -> fx.Proxy:
        node.meta["where"] = self.where
        return _Proxy(node, self)

    def create_arg(self, value: Any) -> Any:
        if isinstance(value, Tensor) and not any(value is t for t in _stored(self.root)):
            raise SpecError(
                "a tensor is computed outside of the layers; bounds would freeze it. Register it as a buffer"
            )
        return super().create_arg(value)


def _stored(root: nn.Module) -> Iterator[Tensor]:
    yield from root.parameters()
    yield from root.buffers()


_graphs: WeakKeyDictionary[nn.Module, dict[Any, fx.Graph]] = WeakKeyDictionary()


def graph_of(model: nn.Module) -> fx.Graph:
    """The steps of `nn.Sequential(model)`, traced anew only when its layers or their modes are not those of before.

    Raises:
        SpecError: if the model cannot be traced, naming the module that stands in the way.
    """
    # A forward method may ask for the mode of its module.
    key = tuple((path, type(module), module.training) for path, module in model.named_modules())
    graphs = _graphs.setdefault(model, {})
    if key not in graphs:
        tracer = _Tracer()
        try:
            graphs[key] = tracer.trace(nn.Sequential(model))
        except Exception as error:  # a forward method may refuse symbolic values in any way it likes
            raise SpecError(
                f"{place(model, tracer.where)} cannot be traced for bounds: {error}; "
                "its forward may not branch on the data, nor leave the layers and operations of torch"
            ) from error
    return graphs[key]


def place(model: nn.Module, where: str) -> str:
    """How an error calls the submodule at `where`, a path inside of `nn.Sequential(model)`."""
    path = where.partition(".")[2]
    kind = parametrize.type_before_parametrizations(model.get_submodule(path)).__name__
    return f"{path} ({kind})" if path else kind
