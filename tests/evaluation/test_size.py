"""Multiply-accumulate operations, against counts by hand."""

import torch
from torch import nn

from hydraprune.evaluation.size import Macs, macs
from hydraprune.masks.source import FixedMask
from hydraprune.masks.view import MaskView


def test_counts_of_a_small_net():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1, groups=2), nn.Flatten(),
        nn.Linear(128, 10),
    )  # fmt: skip
    by_hand = {"0.weight": 64 * 4 * 3 * 9, "3.weight": 16 * 8 * 2 * 9, "5.weight": 1280}
    whole, layers = macs(net, (3, 8, 8))
    assert {name: layer.dense for name, layer in layers.items()} == by_hand
    assert whole == Macs(sum(by_hand.values()), sum(by_hand.values()))

    mask = torch.zeros(10, 128, dtype=torch.bool)
    mask[:, :32] = True
    MaskView(net).attach({"5.weight": FixedMask(mask)})
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    whole, layers = macs(net, (3, 8, 8))
    assert layers["5.weight"] == (1280, 320)
    assert whole == (sum(by_hand.values()), sum(by_hand.values()) - 960)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_what_cannot_be_pruned_counts_in_full():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(16, 4)

        def forward(self, x):
            x = x.flatten(1)
            return self.head((x.mT @ x)[:1])

    net = Product()
    MaskView(net).attach({"head.weight": FixedMask(torch.zeros(4, 16, dtype=torch.bool))})
    whole, _ = macs(net, (1, 4, 4))
    assert whole == (16 * 16 + 64, 16 * 16)
