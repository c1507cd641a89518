"""Initial weights for certified training."""

import math

import pytest
import torch
from torch import nn

from hydraprune.core.errors import SpecError
from hydraprune.core.threat import Box
from hydraprune.nets import Net
from hydraprune.nets.init import fast_certified_init


class Residual(nn.Module):
    """`behind` reads the sum through a ReLU, `beside` the sum itself, `further` through two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.behind, self.beside = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.norm, self.further = nn.BatchNorm2d(32), nn.Conv2d(32, 32, 3, padding=1)
        self.fc = nn.Linear(32, 10)

    def forward(self, x):
        x = self.stem(x)
        x = self.inner(x) + x
        x = self.behind(x.relu()) + self.beside(x) + self.further(self.norm(x).relu())
        return self.fc(x.mean((2, 3)))


class Branching(Residual):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


def spread(layer):
    """The standard deviation in units of sqrt(2 pi) / fan_in."""
    return float(layer.weight.detach().std() * layer.weight[0].numel() / math.sqrt(2 * math.pi))


def test_widths_follow_the_fan_in_and_layers_behind_a_sum_are_halved():
    net = Residual()
    last, biases = net.fc.weight.clone(), {n: p.clone() for n, p in net.named_parameters() if n.endswith("bias")}
    fast_certified_init(net)
    for name, expected in {"stem": 1, "inner": 1, "beside": 1, "further": 1, "behind": 0.5}.items():
        assert spread(getattr(net, name)) == pytest.approx(expected, rel=0.1), name
    assert torch.equal(net.fc.weight, last)
    assert all(torch.equal(net.get_parameter(name), bias) for name, bias in biases.items())


def test_without_a_trace_nothing_is_halved():
    net = Branching()
    fast_certified_init(net)
    assert spread(net.behind) == pytest.approx(1, rel=0.1)


def test_in_a_residual_network_the_first_layer_of_each_block_but_the_first_is_behind_a_sum():
    net = Net(kind="resnet18", init="fast-certified").build(10)
    halved = {name for name, m in net.named_modules() if isinstance(m, nn.Conv2d) and spread(m) < 0.75}
    # The projections of a shortcut read the sum through the same ReLU.
    firsts = {f"layer{i}.{j}.conv1" for i in range(1, 5) for j in range(2)} - {"layer1.0.conv1"}
    assert halved == firsts | {f"layer{i}.0.shortcut.0" for i in range(2, 5)}


def width(net, box):
    """Mean radius of what leaves a chain of layers, by hand."""
    radius = (box.upper - box.lower) / 2
    for layer in net:
        if isinstance(layer, nn.Linear):
            radius = radius @ layer.weight.abs().T
    return float(radius.detach().mean())


def test_boxes_keep_their_width_from_layer_to_layer():
    net = nn.Sequential(*[nn.Linear(400, 400) for _ in range(4)], nn.Linear(400, 10))
    box = Box(torch.zeros(1, 400), torch.ones(1, 400))
    # |w| has mean std * sqrt(2 / pi), so each layer makes them twice as wide and the ReLU behind it halves them.
    before = width(net[:-1], box)
    fast_certified_init(net)
    assert width(net[:-1], box) == pytest.approx(0.5 * 2**4, rel=0.1)
    assert before > 50 * width(net[:-1], box)


def test_it_is_an_option_of_the_net_of_a_recipe():
    with pytest.raises(SpecError, match=r"net\.init: .*'fast-certified'"):
        Net.parse({"kind": "cnn_small", "init": "fast"}, "net")
    torch.manual_seed(0)
    plain = Net(kind="cnn7_bn", normalize="cifar10").build(10, image_size=8)
    torch.manual_seed(0)
    net = Net(kind="cnn7_bn", normalize="cifar10", init="fast-certified").build(10, image_size=8)
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert all(spread(layer) == pytest.approx(1, rel=0.1) for layer in layers[:-1])
    assert torch.equal(layers[-1].weight, plain.net[-1].weight)
    assert sum(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in net.modules()) == len(layers) - 1 == 6
