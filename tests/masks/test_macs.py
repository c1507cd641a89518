"""Multiplications per weight, against counts by hand."""

import torch
from torch import nn

from hydraprune.core.objective import Batch
from hydraprune.masks.budgets import FLOPs
from hydraprune.masks.macs import macs_per_weight
from hydraprune.masks.structures import Channel, Filter
from hydraprune.masks.view import MaskView
from hydraprune.pruners.magnitude import Magnitude
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.pruning import prune


class Net(nn.Module):
    """Layers of every kind; one is used twice and one never."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(4, 2, 2, stride=2)
        self.idle = nn.Linear(2, 2)
        self.along = nn.Linear(8, 3)
        self.head = nn.Linear(48, 10)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu()
        x = self.grouped(self.grouped(x))
        return self.head(self.along(self.up(x)).flatten(1))


def test_every_use_of_a_weight_is_counted():
    net = Net().train()
    view = MaskView(net)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = macs_per_weight(view, torch.rand(5, 3, 8, 8))
    uses = {"conv": 16, "grouped": 2 * 16, "up": 16, "idle": 0, "along": 16, "head": 1}
    assert found == {f"{layer}.weight": count for layer, count in uses.items()}
    assert net.training
    assert net.norm.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


def test_a_flops_budget_leaves_the_share_of_multiplications():
    torch.manual_seed(0)
    batch = Batch(torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))
    for structure in (None, Filter(), Channel()):
        view = MaskView(Net(), exempt=["idle"])
        probe = Probe(torch.Generator(), batches=lambda: [batch])
        prune(view, Magnitude(), FLOPs(sparsity=0.6), structure, probe)
        each = macs_per_weight(view, batch.x)
        dense = sum(weight.numel() * each[name] for name, weight in view.weights().items())
        kept = sum(int(mask.sum()) * each[name] for name, mask in view.masks().items())
        largest = 36 * 32
        assert 0.4 * dense - largest <= kept <= 0.4 * dense + 1
