"""The adapter must be the library, and leave no traces of it."""

import sys

import pyautoattack
import pytest
import torch
from torch import nn

from hydraprune.attacks.apgd import APGD
from hydraprune.attacks.autoattack import AutoAttack
from hydraprune.attacks.square import Square
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


CUSTOM = {
    "plus": (AutoAttack(version="plus"), {"version": "plus"}),
    "rand": (AutoAttack(version="rand"), {"version": "rand"}),
    "apgd-ce": (APGD(steps=7, restarts=2), {"version": "custom", "attacks": ["apgd-ce"]}),
    "apgd-dlr": (APGD(loss="dlr", steps=7, restarts=2), {"version": "custom", "attacks": ["apgd-dlr"]}),
    "apgd-t": (APGD(loss="targeted-dlr", steps=7, restarts=2), {"version": "custom", "attacks": ["apgd-t"]}),
    "square": (Square(queries=30), {"version": "custom", "attacks": ["square"]}),
}


@pytest.mark.parametrize("name", CUSTOM)
def test_other_versions_and_parts_equal_the_library_called_directly(name):
    net, (attack, settings) = network(), CUSTOM[name]
    x, y = images(net)
    found = attack.search(net, x, y, ThreatModel(eps=0.05), torch.Generator().manual_seed(4))

    seed = int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(4)))
    library = pyautoattack.AutoAttack(net, norm="Linf", eps=0.05, seed=seed, **settings)
    if settings["version"] == "custom":
        library.square.n_queries = 30
        for part in (library.apgd, library.apgd_targeted):
            part.n_iter, part.n_restarts = 7, 2
        library.apgd_targeted.n_target_classes = 9
    expected, _ = library.run_standard_evaluation(x, y, batch_size=500)
    assert torch.equal(found, expected)
    assert (net(found).argmax(1) != y).any()


def test_names_say_version_and_strength():
    assert [attack.name for attack, _ in CUSTOM.values()] == [
        "autoattack-plus", "autoattack-rand", "apgd-ce-7x2", "apgd-dlr-7x2", "apgd-targeted-dlr-7x2", "square-30",
    ]  # fmt: skip
    assert AutoAttack().name == "autoattack"


def test_draws_are_averaged_where_asked():
    net = network()
    x, y = images(net)
    passes = []
    net.register_forward_hook(lambda *_: passes.append(1))
    counts = []
    for samples in (1, 3):
        passes.clear()
        APGD(steps=5, eot_samples=samples).search(net, x, y, ThreatModel(eps=0.001), torch.Generator())
        counts.append(len(passes))
    assert counts[1] - counts[0] == 2 * 6  # two more at each of five steps, and at the start


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
    with pytest.raises(EvaluationError, match="apgd-t needs at least 4 classes, the network has 3; use pgd"):
        AutoAttack().search(net, *images(net), ThreatModel(eps=0.02), torch.Generator())
    for attack in (APGD(), APGD(loss="dlr"), Square(queries=5), AutoAttack(version="rand")):
        attack.search(net, *images(net), ThreatModel(eps=0.02), torch.Generator())
    net = network(2)
    with pytest.raises(EvaluationError, match="apgd-dlr needs at least 3 classes, the network has 2"):
        APGD(loss="dlr").search(net, *images(net), ThreatModel(eps=0.02), torch.Generator())
