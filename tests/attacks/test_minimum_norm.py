"""Minimum-norm attacks against closed forms and against the reference implementation."""

import math

import pytest
import torch
from torch import nn

from attacks.trained import digits
from hydraprune.attacks import ATTACKS
from hydraprune.attacks.fmn import FMN
from hydraprune.attacks.foolbox import closest
from hydraprune.attacks.pgd import margin
from hydraprune.core.errors import SpecError
from hydraprune.core.objective import Batch
from hydraprune.core.threat import ThreatModel
from hydraprune.evaluation import evaluate

# How far above the true minimum each attack may land.
FACTORS = {
    ("fmn", "linf"): 1.01,
    ("fmn", "l2"): 1.01,
    ("ddn", "l2"): 1.05,
    ("cw", "l2"): 1.02,
}


def linear(classes=2):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, classes)).eval().requires_grad_(False)
    x = 0.4 + 0.2 * torch.rand(12, 3, 4, 4)
    return net, x, net(x).argmax(1)


def right():
    net, (x, y) = digits()
    found = net(x).argmax(1) == y
    return net, x[found][:24], y[found][:24]


@pytest.mark.parametrize(("kind", "norm"), FACTORS)
def test_finds_the_known_minimum_of_a_linear_model(kind, norm):
    net, x, y = linear()
    weight = net[1].weight[0] - net[1].weight[1]
    radii = -margin(net(x), y) / torch.linalg.vector_norm(weight, ord=1 if norm == "linf" else 2)
    attack = ATTACKS.make({"kind": kind, "steps": 300}, "attack")
    threat = ThreatModel(norm=norm, eps=0.1)
    result = evaluate(net, [Batch(x, y)], threat=threat, attacks=[attack], seed=0)
    ratio = result.distance[attack.name] / radii
    assert (ratio > 1 - 1e-4).all()  # nothing shorter can fool it
    assert (ratio < FACTORS[kind, norm]).all()
    assert torch.equal(result.survived[attack.name], result.distance[attack.name] > 0.1)


def test_fmn_is_the_reference_in_linf():
    net, x, y = right()
    threat = ThreatModel(eps=0.2)
    mine = FMN(steps=60).closest(net, x, y, threat, torch.Generator())
    theirs = closest("LInfFMNAttack", net, x, y, torch.Generator(), steps=60)
    assert threat.distance(mine, theirs).max() < 1e-3
    assert (net(mine).argmax(1) != y).all()


def test_fmn_is_at_least_as_good_as_other_attacks_in_l2():
    net, x, y = right()
    threat = ThreatModel(norm="l2", eps=1)
    lengths = {
        kind: threat.distance(x, ATTACKS.make(kind, "a").closest(net, x, y, threat, torch.Generator())).mean()
        for kind in ("fmn", "ddn")
    }
    assert lengths["fmn"] < 1.02 * lengths["ddn"]


def test_one_run_gives_every_radius():
    """The security curve is what evaluations at each radius would give."""
    net, (x, y) = digits()
    batch, attack, radii = Batch(x[:40], y[:40]), FMN(steps=40), torch.tensor([0.0, 0.05, 0.1, 0.2, 0.4])
    curve = evaluate(net, [batch], threat=ThreatModel(eps=0.1), attacks=[attack], seed=0).security(radii)
    single = [
        evaluate(net, [batch], threat=ThreatModel(eps=eps), attacks=[attack], seed=0).robust_accuracy[attack.name]
        for eps in radii.tolist()
    ]
    assert curve[attack.name].tolist() == single
    assert single[0] > single[2] > single[-1]


def test_without_success_the_distance_is_infinite():
    class Stubborn(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.tensor([1.0, 0.0, 0.0]))

        def forward(self, x):
            return self.bias + 0 * x.flatten(1)[:, :3]

    batch = Batch(torch.rand(2, 1, 2, 2), torch.tensor([0, 1]))
    result = evaluate(Stubborn(), [batch], threat=ThreatModel(eps=1), attacks=[FMN(steps=3)], seed=0)
    assert result.distance["fmn-3"].tolist() == [math.inf, 0.0]
    assert result.survived["fmn-3"].tolist() == [True, False]


def test_the_dlr_loss_makes_fmn_independent_of_the_scale_of_logits():
    net, x, y = right()
    hot = nn.Sequential(net, nn.Module())
    hot[1].forward = lambda logits: 100 * logits
    threat = ThreatModel(eps=0.1)
    found = [FMN(steps=20, loss="dlr").closest(n, x, y, threat, torch.Generator()) for n in (net, hot)]
    assert threat.distance(*found).max() < 0.02


@pytest.mark.parametrize("kind", ["ddn", "cw"])
def test_an_l2_attack_is_refused_in_linf(kind):
    net, x, y = linear()
    with pytest.raises(SpecError, match=f"attack '{kind}.*' works in l2, the threat is linf"):
        evaluate(net, [Batch(x, y)], threat=ThreatModel(eps=0.1), attacks=[ATTACKS.make(kind, "a")], seed=0)
