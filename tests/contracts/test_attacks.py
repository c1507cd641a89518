"""What every registered attack must do, and must leave alone."""

import copy

import pyautoattack
import pytest
import torch

from attacks.trained import digits
from contracts.material import quick, snapshot, unchanged
from hydraprune.attacks import ATTACKS
from hydraprune.core.errors import EvaluationError
from hydraprune.core.objective import Batch
from hydraprune.core.threat import ThreatModel
from hydraprune.evaluation import clean_accuracy, evaluate

THREATS = {"linf": ThreatModel(eps=0.3), "l2": ThreatModel(norm="l2", eps=1.5)}
NORMS = [(name, norm) for name in ATTACKS.names() for norm in ATTACKS.get(name).norms]
FEW = {
    "square": {"queries": 100},
    "cw": {"steps": 60},
    "ddn": {"steps": 30},
    "transfer": {"origin": "other", "steps": 5},
    "ensemble": {"attacks": ["fgsm", {"kind": "square", "queries": 9}]},
}
each = pytest.mark.parametrize(("name", "norm"), NORMS)


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """AutoAttack with fewer steps; it has no setting for them."""
    chosen = pyautoattack.AutoAttack._set_version

    def shortened(self, version):
        chosen(self, version)
        self.square.n_queries = 100
        self.apgd.n_iter = self.apgd_targeted.n_iter = self.fab.n_iter = 10

    monkeypatch.setattr(pyautoattack.AutoAttack, "_set_version", shortened)


def attack(name):
    """With few steps, or as few as it can do with."""
    return ATTACKS.make({"kind": name, **FEW[name]}, "here") if name in FEW else quick(ATTACKS.get(name), few=5)


def others():
    return {"other": digits()[0]}


def images(count=8):
    return Batch(*(part[:count].clone() for part in digits()[1]))


def frozen():
    """What evaluation shows an attack: a plain net whose parameters take no gradient."""
    model = copy.deepcopy(digits()[0]).requires_grad_(False)
    model.zero_grad()
    return model


@each
def test_it_stays_in_the_ball_and_in_the_pixel_range_and_repeats_itself(name, norm):
    (x, y), threat = images(), THREATS[norm]
    model = frozen()
    before, given = snapshot(model), images()
    state = torch.get_rng_state()

    def found():
        return attack(name).using(others()).search(model, x, y, threat, torch.Generator().manual_seed(1))

    adversarial = found()
    assert adversarial.shape == x.shape
    assert not adversarial.requires_grad
    assert threat.distance(x, adversarial).max() <= threat.eps * (1 + 1e-4)
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert not torch.equal(adversarial, x)
    assert torch.equal(found(), adversarial)
    assert unchanged(model, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, given.x)
    assert torch.equal(y, given.y)


@each
def test_it_finds_something_and_never_raises_accuracy(name, norm):
    (model, _), before = digits(), snapshot(digits()[0])
    tried = attack(name)
    assert tried.name.startswith(name)
    result = evaluate(model, [images(16)], threat=THREATS[norm], attacks=[tried], seed=0, networks=others())
    clean = clean_accuracy(model, [images(16)])
    assert result.clean_accuracy == clean > 0.6
    assert result.robust_accuracy[tried.name] < clean
    assert not (result.survived[tried.name] & ~result.correct).any()
    assert unchanged(model, before)


@each
def test_without_room_nothing_falls(name, norm):
    tried = attack(name)
    threat = ThreatModel(norm=norm, eps=0)
    result = evaluate(digits()[0], [images(2)], threat=threat, attacks=[tried], seed=0, networks=others())
    assert torch.equal(result.survived[tried.name], result.correct)


@each
def test_nan_is_a_failure_and_no_robustness(name, norm):
    broken = frozen()
    broken[0].weight.data[0] = float("nan")
    with pytest.raises(EvaluationError, match="NaN or infinite"):
        evaluate(broken, [images(2)], threat=THREATS[norm], attacks=[attack(name)], seed=0, networks=others())
