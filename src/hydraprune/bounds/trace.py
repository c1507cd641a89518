"""The graphs that bounds walk, traced once for each model."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from torch import fx, nn

from hydraprune.core.errors import SpecError
from hydraprune.core.graph import place, traced

_graphs: WeakKeyDictionary[nn.Module, dict[Any, fx.Graph]] = WeakKeyDictionary()


def graph_of(model: nn.Module) -> fx.Graph:
    """The steps of `nn.Sequential(model)`, traced anew only when its layers or their modes are not those of before.

    Raises:
        SpecError: if the model cannot be traced, or makes tensors outside of its layers; the module is named.
    """
    # A forward method may ask for the mode of its module.
    key = tuple((path, type(module), module.training) for path, module in model.named_modules())
    graphs = _graphs.setdefault(model, {})
    if key not in graphs:
        graph = traced(model)
        root = nn.Sequential(model)
        stored = {name for name, _ in [*root.named_parameters(), *root.named_buffers()]}
        for node in graph.nodes:
            if node.op == "get_attr" and node.target not in stored:
                raise SpecError(
                    f"{place(model, node.meta['where'])}: a tensor is computed outside of the layers, and bounds would "
                    "freeze it; register it as a buffer"
                )
        graphs[key] = graph
    return graphs[key]
