"""Runs the graph of a network, traced once, on boxes instead of images."""

from __future__ import annotations

from collections import Counter
from typing import Any
from weakref import WeakKeyDictionary

from torch import fx, nn

from hydraprune.bounds.backward import Backward
from hydraprune.bounds.ops import MaxPool, Permute, ReLU, Reshape
from hydraprune.bounds.rules import Call, Value, rule_for
from hydraprune.bounds.statistics import Statistics
from hydraprune.bounds.tape import IMAGES, Tape
from hydraprune.core.errors import SpecError
from hydraprune.core.graph import called, in_place, inside, place, traced

_graphs: WeakKeyDictionary[nn.Module, dict[Any, fx.Graph]] = WeakKeyDictionary()


def run(model: nn.Module, tape: Tape, statistics: Statistics | None, backward: Backward | None = None) -> Tape:
    """`tape` with the steps of `model` on its images, with the weights that the layers have now.

    Args:
        statistics: what batch norms in training mode take for mean and variance.
        backward: of the same tape; where the box of what enters a ReLU or a max pooling comes from. None takes all
            boxes from interval arithmetic.

    Raises:
        SpecError: if the model cannot be traced, has an operation without bounds, or gives no logits (B, K).
    """
    runner = _Runner(nn.Sequential(model), tape, statistics, backward)
    for node in _graph_of(model).nodes:
        try:
            runner.step(node)
        except SpecError as error:
            raise SpecError(f"{place(model, node.meta.get('where', ''))}: {_called(node)} {error}") from error
    return tape


class _Runner:
    """Walks a graph; what depends on the images becomes steps of the tape, all else is computed as it stands."""

    def __init__(self, root: nn.Module, tape: Tape, statistics: Statistics | None, backward: Backward | None) -> None:
        self.root = root
        self.tape = tape
        self.statistics = statistics
        self.backward = backward
        self.known: dict[fx.Node, Any] = {}
        # How often the memory of a step was overwritten; what was read from it before is then no longer there.
        self.writes: Counter[str] = Counter()

    def step(self, node: fx.Node) -> None:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.known.__getitem__)
        if node.op == "placeholder":
            self.known[node] = Value(IMAGES, self.tape.steps[IMAGES].box, IMAGES, 0)
        elif node.op == "get_attr":
            path, _, name = str(node.target).rpartition(".")
            self.known[node] = getattr(self.root.get_submodule(path), name)
        elif node.op == "output":
            if not isinstance(args[0], Value) or args[0].ndim != 2:
                raise SpecError("must be one tensor of logits (B, K)")
            self.tape.last = args[0].name
        else:
            self.known[node] = self._call(node, args, kwargs)

    def _call(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        target: Any = self.root.get_submodule(str(node.target)) if node.op == "call_module" else node.target
        inputs = [self.known[source] for source in node.all_input_nodes]
        if not any(isinstance(value, Value) for value in inputs):  # sizes, and weights on their way to a layer
            return getattr(args[0], target)(*args[1:], **kwargs) if isinstance(target, str) else target(*args, **kwargs)
        rule = rule_for(target, self.statistics)
        if rule is None:
            raise SpecError("has no bounds")
        try:
            result = rule(*args, **kwargs)
        except TypeError as error:
            raise SpecError(f"is called in a way that has no bounds: {error}") from error
        return self._append(node, *result) if isinstance(result, Call) else result

    def _append(self, node: fx.Node, op: Any, inputs: tuple[Value, ...]) -> Value:
        for value in inputs:
            if value.version != self.writes[value.memory]:
                raise SpecError("reads what an in-place operation has overwritten; use inplace=False")
        if self.backward is not None and isinstance(op, ReLU | MaxPool):
            self.backward.tighten(inputs[0].name)
        name = inside(node.target) if node.op == "call_module" else node.name
        while name in self.tape.steps:
            name += "+"
        memory = inputs[0].memory if isinstance(op, Reshape | Permute) else name
        if in_place(node, self.root):
            memory = inputs[0].memory
            self.writes[memory] += 1
        box = self.tape.append(name, op, tuple(value.name for value in inputs))
        return Value(name, box, memory, self.writes[memory])


def _graph_of(model: nn.Module) -> fx.Graph:
    """The steps of `nn.Sequential(model)`, traced anew only when its layers or their modes are not those of before."""
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


def _called(node: fx.Node) -> str:
    return "this layer" if node.op == "call_module" else called(node)
