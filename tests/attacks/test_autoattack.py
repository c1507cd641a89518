"""The adapter must be the library, and leave no traces of it."""

import sys

import pyautoattack
import pytest
import torch
from torch import nn

from hydraprune.attacks.autoattack import AutoAttack
from hydraprune.core.errors import EvaluationError
from hydraprune.core.threat import ThreatModel


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """The same four attacks with fewer iterations, for the adapter and for the library alike."""
    chosen = pyautoattack.AutoAttack._set_version

    def shortened(self, version):
        chosen(self, version)
        self.square.n_queries = 60
        self.apgd.n_iter = self.apgd_targeted.n_iter = self.fab.n_iter = 10

    monkeypatch.setattr(pyautoattack.AutoAttack, "_set_version", shortened)


def network(classes: int = 10) -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(36, classes))
    return net.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def images(net: nn.Module, number: int = 12):
    x = torch.rand(number, 3, 6, 6)
    return x, net(x).argmax(1)


@pytest.mark.parametrize(("norm", "theirs", "eps"), [("linf", "Linf", 0.05), ("l2", "L2", 0.3)])
def test_equals_the_library_called_directly(norm, theirs, eps):
    net = network()
    x, y = images(net)
    found = AutoAttack(batch_size=8).search(
        net, x, y, ThreatModel(norm=norm, eps=eps), torch.Generator().manual_seed(4)
    )

    seed = int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(4)))
    library = pyautoattack.AutoAttack(net, norm=theirs, eps=eps, seed=seed, version="standard")
    expected, _ = library.run_standard_evaluation(x, y, batch_size=8)
    assert torch.equal(found, expected)
    assert 0 < (net(found).argmax(1) != y).sum() < len(x)


def test_is_quiet_and_leaves_random_numbers_tracing_and_model_alone(capfd):
    net, tracer = network(), lambda *_: None
    x, y = images(net)
    state, noise = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    earlier = sys.gettrace()
    sys.settrace(tracer)
    try:
        attack, threat = AutoAttack(), ThreatModel(eps=0.02)
        first = attack.search(net, x.to(memory_format=torch.channels_last), y, threat, torch.Generator())
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(earlier)
    assert torch.equal(torch.get_rng_state(), noise)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in state.items())
    assert torch.equal(first, attack.search(net, x, y, threat, torch.Generator()))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("classes", [4, 6])
def test_runs_with_fewer_than_ten_classes(classes):
    net = network(classes)
    x, y = images(net)
    threat = ThreatModel(eps=0.02)
    found = AutoAttack().search(net, x, y, threat, torch.Generator())
    assert (threat.distance(x, found) <= 0.02 * (1 + 1e-5)).all()


def test_refuses_three_classes():
    net = network(3)
    with pytest.raises(EvaluationError, match="at least 4 classes, the network has 3"):
        AutoAttack().search(net, *images(net), ThreatModel(eps=0.02), torch.Generator())
