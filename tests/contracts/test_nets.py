"""What every built-in network must do. Built without memory: shapes alone."""

import pytest
import torch
from torch import fx

from hydraprune.masks.view import MaskView
from hydraprune.nets import Net, names

pytestmark = pytest.mark.parametrize("name", names())


def build(name, classes=10, channels=3, side=32):
    with torch.device("meta"):
        return Net(kind=name).build(classes, channels, side)


@pytest.mark.parametrize(("classes", "channels", "side"), [(10, 3, 32), (7, 1, 32), (100, 3, 64)])
def test_it_gives_a_logit_for_every_class(name, classes, channels, side):
    model = build(name, classes, channels, side)
    assert model.training
    assert model(torch.empty(3, channels, side, side, device="meta")).shape == (3, classes)


def test_it_can_be_traced(name):
    graph = fx.Tracer().trace(build(name))
    assert {node.op for node in graph.nodes} <= {"placeholder", "call_module", "call_function", "output"}


def test_its_convolutions_and_linear_layers_can_be_pruned(name):
    model = build(name)
    layers = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)}
    view = MaskView(model)
    assert {weight.removesuffix(".weight") for weight in view.weights()} == layers
    counts = view.counts().values()
    assert view.count().kept == view.count().total == sum(count.total for count in counts)
    assert view.count().total > 0.99 * sum(p.numel() for p in model.parameters() if p.dim() > 1)
