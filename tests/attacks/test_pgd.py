"""Evaluation by PGD and FGSM: skipping fallen images must not change a verdict."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from attacks.trained import THREAT, digits
from hydraprune.attacks import ATTACKS
from hydraprune.attacks.fgsm import FGSM
from hydraprune.attacks.gradient import ascend
from hydraprune.attacks.pgd import PGD, margin
from hydraprune.core.errors import SpecError
from hydraprune.core.threat import ThreatModel

L2 = ThreatModel(norm="l2", eps=0.5)


class Counting(nn.Module):
    """Counts the images that pass through."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.images = net, 0

    def forward(self, x):
        self.images += len(x)
        return self.net(x)


def plain_loop(net, x, y, threat, rng, *, steps, restarts):
    """Every step of every restart on every image; (B,) bool, where no iterate is misclassified."""
    robust = torch.ones(len(x), dtype=torch.bool)
    loss = partial(F.cross_entropy, target=y, reduction="none")
    for _ in range(restarts):
        adversarial = threat.sample(x, rng)
        for step in range(steps + 1):
            with torch.no_grad():
                robust &= net(adversarial).argmax(1) == y
            if step < steps:
                adversarial, _ = ascend(net, x, adversarial, threat, loss, 2.5 * threat.eps / steps)
    return robust


@pytest.mark.parametrize("threat", [THREAT, L2], ids=["linf", "l2"])
def test_skipping_gives_the_verdicts_of_the_plain_loop(threat):
    net, (x, y) = digits()
    right = net(x).argmax(1) == y
    x, y = x[right], y[right]
    full, lean = Counting(net), Counting(net)
    expected = plain_loop(full, x, y, threat, torch.Generator().manual_seed(5), steps=10, restarts=4)
    found = PGD(steps=10, restarts=4).search(lean, x, y, threat, torch.Generator().manual_seed(5))
    assert torch.equal(net(found).argmax(1) == y, expected)
    assert 0.3 < expected.float().mean() < 0.9
    assert lean.images < 0.8 * full.images / 2  # the plain loop judges by a second forward pass
    assert (threat.distance(x, found) <= threat.eps * (1 + 1e-5)).all()
    assert found.min() >= 0
    assert found.max() <= 1


def test_a_fallen_iterate_counts_even_if_later_ones_are_classified_correctly():
    class Ring(nn.Module):
        """Class 1 only for pixels in (0.55, 0.6); the slope leads through and out on the other side."""

        def forward(self, x):
            v = x.flatten(1)[:, :1]
            return torch.cat([-v, torch.where((v > 0.55) & (v < 0.6), 1.0, -2.0) + v - v.detach()], 1)

    x, y = torch.full((4, 1, 1, 1), 0.5), torch.zeros(4, dtype=torch.int64)
    attack = PGD(steps=20, restarts=1, step_size=0.03)
    found = attack.search(Ring(), x, y, ThreatModel(eps=0.3), torch.Generator())
    assert (Ring()(found).argmax(1) == 1).any()


@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_breaks_a_linear_model_within_one_percent_of_its_radius(norm, dual, loss):
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    x = 0.4 + 0.2 * torch.rand(20, 3, 4, 4)
    logits, weight = net(x).detach(), net[1].weight.detach()
    y = logits.argmax(1)
    radii = -margin(logits, y) / torch.linalg.vector_norm(weight[0] - weight[1], ord=dual)
    for i in radii.argsort()[::5]:  # the pixel range binds for none of them
        one, label = x[i : i + 1], y[i : i + 1]
        for factor, breaks in ((0.99, False), (1.01, True)):
            eps = factor * float(radii[i])
            attack = PGD(steps=20, restarts=2, step_size=eps / 4, loss=loss)
            found = attack.search(net, one, label, ThreatModel(norm=norm, eps=eps), torch.Generator())
            assert (net(found).argmax(1) != label).item() is breaks
        fast = FGSM().search(net, one, label, ThreatModel(norm=norm, eps=eps), torch.Generator())
        assert net(fast).argmax(1) != label


def test_the_margin_finds_what_saturated_logits_hide_from_the_cross_entropy():
    net, (x, y) = digits()
    right = net(x).argmax(1) == y
    x, y = x[right], y[right]
    hot = nn.Sequential(net, nn.Module())
    hot[1].forward = lambda logits: 1e4 * logits
    broken = {}
    for loss in ("ce", "margin"):
        found = PGD(steps=10, restarts=1, loss=loss).search(hot, x, y, THREAT, torch.Generator())
        broken[loss] = int((net(found).argmax(1) != y).sum())
    assert broken["margin"] > 2 * broken["ce"]


def test_survivors_come_back_as_the_last_iterate_so_that_a_failed_attack_shows():
    class Cusp(nn.Module):
        """Finite logits with a gradient that is NaN."""

        def forward(self, x):
            v = (x.flatten(1).sum(1, keepdim=True) * 0).sqrt()
            return torch.cat([1 + v, v], 1)

    x, y = torch.rand(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64)
    assert PGD(steps=2, restarts=1).search(Cusp(), x, y, ThreatModel(eps=0.1), torch.Generator()).isnan().all()


def test_registry_names_and_settings():
    assert ATTACKS.names() == [
        "fgsm", "pgd", "autoattack", "apgd", "square", "fmn", "ddn", "cw", "transfer", "ensemble",
    ]  # fmt: skip
    assert ATTACKS.make("pgd", "attacks").name == "pgd-50x10"
    assert ATTACKS.make({"kind": "pgd", "steps": 20, "restarts": 1, "loss": "margin"}, "a").name == "pgd-20x1-margin"
    assert ATTACKS.make({"kind": "pgd", "step_size": "2/255"}, "a").step_size == pytest.approx(2 / 255)
    assert ATTACKS.make("fgsm", "a").name == "fgsm"
    with pytest.raises(SpecError, match="steps"):
        PGD(steps=0)
    with pytest.raises(SpecError, match="did you mean 'autoattack'"):
        ATTACKS.make("auto-attack", "attacks")
