"""A small checkpoint that knows its network, and its data."""

import pytest
import torch

import hydraprune as hp
from hydraprune.nets import Net
from hydraprune.runs.checkpoint import save
from hydraprune.runs.meta import Meta


@pytest.fixture(scope="session")
def digits():
    return hp.load_data("digits")


@pytest.fixture
def folder(tmp_path):
    """With batch norm, statistics that it has seen, and a mask; of images of 1 x 8 x 8."""
    torch.manual_seed(0)
    net = Net(kind="cnn_medium")
    model = net.build(10, 1, 8)
    hp.prune(model, "magnitude", hp.ERK(sparsity=0.9))
    hp.MaskView(model).freeze()
    model(torch.rand(64, 1, 8, 8))
    meta = Meta(
        net=net, num_classes=10, in_channels=1, image_size=8, pruner="magnitude", threat={"norm": "linf", "eps": 0.05}
    )
    save(tmp_path / "net", model, meta)
    return tmp_path / "net"
