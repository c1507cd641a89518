"""One tracer for bounds, folding and initial weights."""

import operator

import pytest
import torch
from torch import nn

import hydraprune as hp
from hydraprune.core.errors import SpecError
from hydraprune.core.graph import inside, traced
from hydraprune.core.twin import Twin, foldable


class Shifted(nn.Module):
    """Adds a tensor, that it stores or makes, in place to what its layers give."""

    def __init__(self, stored):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        self.head = nn.Linear(8, 3)
        if stored:
            self.register_buffer("shift", torch.ones(1))
        else:
            self.stand_in = [torch.ones(1)]

    def forward(self, x):
        x = self.layers(x)
        x += self.shift if hasattr(self, "shift") else self.stand_in[0]
        return self.head(x.flatten(1))


def test_steps_name_their_layer_and_say_what_is_in_place():
    graph = traced(Shifted(stored=True))
    layers = [inside(node.target) for node in graph.nodes if node.op == "call_module"]
    assert layers == ["layers.0", "layers.1", "head"]
    assert [node.target for node in graph.nodes if node.op == "call_function"] == [operator.iadd]


@pytest.mark.parametrize("stored", [True, False])
def test_a_tensor_made_on_the_way_keeps_no_norm_from_folding_but_has_no_bounds(stored):
    net = Shifted(stored).eval()
    x, before = torch.rand(2, 1, 4, 4), dir(net)
    assert foldable(net) == {"layers.1": "layers.0"}
    torch.testing.assert_close(Twin(net).refresh(0)(x), net(x))
    assert dir(net) == before
    if stored:
        hp.logit_bounds(net, x, {"eps": 0.1}, "ibp")
    else:
        with pytest.raises(SpecError, match=r"Shifted: a tensor is computed outside of the layers, .*; register it"):
            hp.logit_bounds(net, x, {"eps": 0.1}, "ibp")
