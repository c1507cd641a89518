"""Runs the graph of a network on boxes instead of images."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import fx, nn

from hydraprune.bounds.backward import Backward
from hydraprune.bounds.ops import MaxPool, Permute, ReLU, Reshape, Slope
from hydraprune.bounds.rules import Call, Value, rule_for
from hydraprune.bounds.statistics import Statistics
from hydraprune.bounds.tape import IMAGES, Tape
from hydraprune.bounds.trace import graph_of, place
from hydraprune.core.errors import SpecError
from hydraprune.core.threat import Box


def run(model: nn.Module, box: Box, statistics: Statistics | None, slope: Slope | None, chunk: int) -> Tape:
    """The steps of `model` on the images of `box`, with the weights that its layers have now.

    Args:
        statistics: what batch norms in training mode take for mean and variance.
        slope: take the box of what enters a ReLU or a max pooling from linear bounds with these lower lines; None
            takes all boxes from interval arithmetic.
        chunk: rows of linear bounds computed at once.

    Raises:
        SpecError: if the model cannot be traced, has an operation without bounds, or gives no logits (B, K).
    """
    root, tape, memory = nn.Sequential(model), Tape(box), _Memory()
    tighten = None if slope is None else Backward(tape, slope, chunk).tighten
    known: dict[fx.Node, Any] = {}

    def called(node: fx.Node) -> Any:
        target = root.get_submodule(node.target) if node.op == "call_module" else node.target
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
        inputs = [known[source] for source in node.all_input_nodes if isinstance(known[source], Value)]
        if not inputs:  # sizes, and weights on their way to a layer
            return getattr(args[0], target)(*args[1:], **kwargs) if node.op == "call_method" else target(*args, **kwargs)
        rule = rule_for(target, statistics)
        if rule is None:
            raise SpecError("has no bounds")
        memory.read(inputs)
        result = rule(*args, **kwargs)
        if not isinstance(result, Call):
            return result
        op, sources = result
        if tighten and isinstance(op, ReLU | MaxPool):
            tighten(sources[0].name)
        memory.write(node.name, sources[0].name, shared=isinstance(op, Reshape|Permute), over=)
        return Value(node.name, tape.append(node.name, op, tuple(source.name for source in sources)))
