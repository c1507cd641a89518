"""What every registered attack must do, and must leave alone."""

import copy

import pytest
import torch

from attacks.trained import digits
from contracts.material import quick, snapshot, unchanged
from hydraprune.attacks import ATTACKS
from hydraprune.core.objective import Batch
from hydraprune.core.threat import ThreatModel
from hydraprune.evaluate import clean_accuracy, evaluate

THREATS = {"linf": ThreatModel(eps=0.3), "l2": ThreatModel(norm="l2", eps=1.5)}
pytestmark = pytest.mark.parametrize("name", ATTACKS.names())


def images(count=8):
    return Batch(*(part[:count].clone() for part in digits()[1]))


def frozen():
    """What evaluation shows an attack: a plain net whose parameters take no gradient."""
    model = copy.deepcopy(digits()[0]).requires_grad_(False)
    model.zero_grad()
    return model


@pytest.mark.parametrize("norm", THREATS)
def test_it_stays_in_the_ball_and_in_the_pixel_range_and_repeats_itself(name, norm):
    (x, y), threat = images(), THREATS[norm]
    model = frozen()
    before, given = snapshot(model), images()
    state = torch.get_rng_state()

    def found():
        return quick(ATTACKS.get(name)).search(model, x, y, threat, torch.Generator().manual_seed(1))

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


@pytest.mark.parametrize("norm", THREATS)
def test_it_finds_something_and_never_raises_accuracy(name, norm):
    (model, _), before = digits(), snapshot(digits()[0])
    attack = quick(ATTACKS.get(name))
    assert attack.name.startswith(name)
    result = evaluate(model, [images(16)], threat=THREATS[norm], attacks=[attack], seed=0)
    clean = clean_accuracy(model, [images(16)])
    assert result.clean_accuracy == clean > 0.6
    assert result.robust_accuracy[attack.name] < clean
    assert not (result.survived[attack.name] & ~result.correct).any()
    assert unchanged(model, before)


def test_without_room_nothing_falls(name):
    attack = quick(ATTACKS.get(name))
    result = evaluate(digits()[0], [images()], threat=ThreatModel(eps=0), attacks=[attack], seed=0)
    assert torch.equal(result.survived[attack.name], result.correct)
