"""Checkpoints that know their network, and their data."""

import pytest
import torch

import hydraprune as hp
from hydraprune.deploy.base import Original
from hydraprune.nets import Net
from hydraprune.runs.checkpoint import open_checkpoint, save
from hydraprune.runs.meta import Meta

THREAT = hp.ThreatModel(norm="linf", eps=0.06)


@pytest.fixture
def folder(tmp_path):
    """With batch norm, statistics that it has seen, and a mask; of images of 1 x 8 x 8, and not trained."""
    torch.manual_seed(0)
    net = Net(kind="cnn_medium")
    model = net.build(10, 1, 8)
    hp.prune(model, "magnitude", hp.ERK(sparsity=0.9))
    hp.MaskView(model).freeze()
    model(torch.rand(64, 1, 8, 8))
    meta = Meta(net=net, num_classes=10, in_channels=1, image_size=8, pruner="magnitude", threat=THREAT)
    save(tmp_path / "net", model, meta)
    return tmp_path / "net"


@pytest.fixture(scope="session")
def digits():
    return hp.load_data("digits", samples=600)


@pytest.fixture(scope="session")
def trained(digits, tmp_path_factory):
    """The folder of a network with batch norm, 80 % of whose weights are gone."""
    torch.manual_seed(0)
    net = hp.Net(kind="cnn_digits")
    model = net.build(10, 1, 8)
    batches = digits.train.batches(100, seed=0, shuffle=True)
    robust = {"objective": hp.PGD(steps=3), "threat": THREAT, "optim": {"lr": 0.1}}
    hp.fit(model, model.parameters(), batches, **robust, epochs=4)
    hp.prune(model, "magnitude", hp.ERK(sparsity=0.8))
    hp.fit(model, model.parameters(), batches, **robust, epochs=3)
    hp.MaskView(model).freeze()
    folder = tmp_path_factory.mktemp("digits") / "net"
    meta = Meta(net=net, num_classes=10, in_channels=1, image_size=8, pruner="magnitude", threat=THREAT)
    save(folder, model, meta)
    return folder


@pytest.fixture(scope="session")
def source(trained, digits):
    return Original(open_checkpoint(trained), data=digits)


@pytest.fixture(scope="session")
def test_pair(digits):
    """All test images (360, 1, 8, 8) and their labels."""
    return next(iter(digits.test.batches(500, seed=0).epoch(0)))
