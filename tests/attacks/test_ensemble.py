"""Attacks made of others: the union in sequence, and images found on another network."""

import copy
from typing import Literal

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from attacks.trained import THREAT, digits
from hydraprune.attacks.ensemble import Ensemble
from hydraprune.attacks.fgsm import FGSM
from hydraprune.attacks.gradient import cross_entropy_of, pgd
from hydraprune.attacks.pgd import PGD
from hydraprune.attacks.square import Square
from hydraprune.attacks.transfer import Transfer
from hydraprune.core.attack import Attack
from hydraprune.core.errors import SpecError
from hydraprune.core.objective import Batch
from hydraprune.core.seeds import generator
from hydraprune.core.threat import ThreatModel
from hydraprune.evaluation import evaluate


class Watched(Attack):
    """Another attack, and how many images it was given."""

    kind: Literal["watched"] = "watched"
    attack: Attack
    seen: object

    @property
    def name(self) -> str:
        return self.attack.name

    def search(self, model, x, y, threat, rng):
        self.seen.append(len(x))
        return self.attack.search(model, x, y, threat, rng)


def some(count=80):
    net, (x, y) = digits()
    return net, Batch(x[:count], y[:count])


def test_an_ensemble_is_the_union_of_its_members_and_skips_what_is_broken():
    """Members without randomness: the union must be that of separate runs, image by image."""
    net, batch = some()
    short = PGD(steps=5, restarts=1)
    seen = []
    members = [FGSM(), Watched(attack=short, seen=seen)]
    apart = evaluate(net, [batch], threat=THREAT, attacks=[FGSM()], seed=3)
    together = evaluate(net, [batch], threat=THREAT, attacks=[Ensemble.model_construct(attacks=members)], seed=3)
    left = apart.survived["fgsm"]
    assert seen == [int(left.sum())]

    x, y = batch.x[left], batch.y[left]
    found = short.search(net, x, y, THREAT, generator(3, "evaluation", 0))
    expected = left.clone()
    expected[left] = net(found).argmax(1) == y
    assert torch.equal(together.survived["ensemble-fgsm+pgd-5x1"], expected)
    assert 0 < expected.sum() < left.sum()


def test_an_ensemble_counts_a_member_that_fails():
    net, batch = some(8)
    net = nn.Sequential(net, nn.Module())
    net[1].forward = lambda logits: logits / logits.requires_grad  # NaN or infinite as soon as a gradient is asked for
    with pytest.raises(Exception, match=r"failed|NaN"):
        evaluate(net, [batch], threat=THREAT, attacks=[Ensemble(attacks=[Square(queries=5), FGSM()])], seed=0)


def test_transfer_is_weaker_than_seeing_the_network_and_stronger_than_noise():
    net, batch = some()
    torch.manual_seed(5)
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(other.parameters(), lr=0.05)
    x, y = digits()[1]
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(other(x), y).backward()
        optimizer.step()
    parametrize.register_parametrization(other[1], "weight", nn.Identity())
    other.train()
    attacks, networks = [Transfer(origin="itself"), Transfer(origin="other")], {"itself": net, "other": other}
    result = evaluate(net, [batch], threat=THREAT, attacks=attacks, seed=0, networks=networks)
    accuracy = result.robust_accuracy
    assert accuracy["transfer-50-from-itself"] < accuracy["transfer-50-from-other"] < result.clean_accuracy
    assert other.training
    assert all(p.grad is not None for p in other.parameters())
    union = Ensemble(attacks=attacks)
    both = evaluate(net, [batch], threat=THREAT, attacks=[union], seed=0, networks=networks).survived[union.name]
    assert not (both & ~result.survived["transfer-50-from-itself"]).any()
    with pytest.raises(SpecError, match="attack 'transfer-50-from-other' needs the network 'other'; give `networks="):
        evaluate(net, [batch], threat=THREAT, attacks=[union], seed=0, networks={"itself": net})


class Noisy(nn.Module):
    """Draws noise in evaluation mode too."""

    def __init__(self, net, sigma):
        super().__init__()
        self.net, self.sigma = net, sigma

    def forward(self, x):
        return self.net(x + self.sigma * torch.randn_like(x))


def test_the_mean_gradient_over_many_draws_is_that_of_the_mean():
    """A linear net with noise on its input: the expected gradient is that of the net without noise."""
    torch.manual_seed(1)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    x, y = 0.3 + 0.4 * torch.rand(40, 1, 4, 4), torch.randint(3, (40,))

    def found(samples):
        torch.manual_seed(2)
        attack = PGD(steps=1, restarts=1, step_size=0.3, eot_samples=samples)
        return attack.search(Noisy(linear, 2.0), x, y, ThreatModel(norm="l2", eps=0.3), torch.Generator())

    true = PGD(steps=1, restarts=1, step_size=0.3).search(
        linear, x, y, ThreatModel(norm="l2", eps=0.3), torch.Generator()
    )
    apart = {samples: (found(samples) - true).flatten(1).norm(dim=1).mean() for samples in (1, 64)}
    assert apart[64] < 0.8 * apart[1]


def test_a_network_that_draws_is_evaluated_reproducibly_and_more_draws_break_more():
    net, batch = some(60)
    noisy, attacks = Noisy(net, 0.3), [PGD(steps=10, restarts=1, eot_samples=n) for n in (1, 8)]
    noise = torch.get_rng_state()
    once, again = (evaluate(noisy, [batch], threat=ThreatModel(eps=0.1), attacks=attacks, seed=0) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), noise)
    for name, verdict in once.survived.items():
        assert torch.equal(verdict, again.survived[name])
    assert once.robust_accuracy["pgd-10x1-eot8"] < once.robust_accuracy["pgd-10x1"]


def test_restarts_of_a_transfer_are_judged_one_by_one():
    net, (x, y) = some()
    torch.manual_seed(5)
    other = copy.deepcopy(net)
    with torch.no_grad():
        for weight in other.parameters():
            weight += 0.1 * torch.randn(weight.shape)
    assert Transfer(origin="other").name == "transfer-50-from-other"
    attack = Transfer(origin="other", steps=3, restarts=4)
    assert attack.name == "transfer-3x4-from-other"
    rng = generator(0)
    each = [pgd(other, x, THREAT, cross_entropy_of(y), steps=3, start="uniform", rng=rng) for _ in range(4)]
    fooled = torch.stack([net(images).argmax(1) != y for images in each])
    first = torch.where(fooled.any(0), fooled.int().argmax(0), 3)
    found = attack.using({"other": other}).search(net, x, y, THREAT, generator(0))
    expected = torch.stack([each[restart][place] for place, restart in enumerate(first.tolist())])
    assert torch.allclose(found, expected, atol=1e-6)
    assert fooled[0].sum() < fooled.any(0).sum() < len(y)
    once = Transfer(origin="other", steps=3).using({"other": other}).search(net, x, y, THREAT, generator(0))
    assert torch.allclose(once, each[0], atol=1e-6)
