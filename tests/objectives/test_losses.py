"""Each loss against a slow and obvious computation: the attack, the value, the gradient and the metrics."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hydraprune.core.plain import once
from hydraprune.core.threat import ThreatModel
from hydraprune.objectives.fast import Fast
from hydraprune.objectives.mart import MART
from hydraprune.objectives.natural import Natural
from hydraprune.objectives.pgd import PGD
from hydraprune.objectives.trades import TRADES
from objectives.small import BATCH, context, cross_entropy_of, literal_attack, record, small

X, Y = BATCH
LINF, L2 = ThreatModel(eps=0.1), ThreatModel(norm="l2", eps=0.5)


def uniform(threat):
    return threat.sample(X, torch.Generator().manual_seed(0))


def gaussian(threat):
    return X + 0.001 * torch.randn(X.shape, generator=torch.Generator().manual_seed(0))


def ce_attack(start, steps, size):
    return lambda net, threat: literal_attack(net, X, start(threat), threat, cross_entropy_of(Y), steps, size)


def kl_attack(steps, size):
    def attack(net, threat):
        clean = copy.deepcopy(net).eval()(X).softmax(1).detach()

        def loss(logits, i):
            p, q = clean[i], logits[0].softmax(0)
            return sum(p[k] * (p[k] / q[k]).log() for k in range(3))

        return literal_attack(net, X, gaussian(threat), threat, loss, steps, size)

    return attack


def ce(p):
    return sum(-p[i, Y[i]].log() for i in range(6)) / 6


def kl(p, q, i):
    return sum(p[i, k] * (p[i, k].log() - q[i, k].log()) for k in range(3))


def trades(beta):
    return lambda p, q: ce(p) + beta * sum(kl(p, q, i) for i in range(6)) / 6


def mart(beta):
    def loss(p, q):
        total = 0
        for i, y in enumerate(Y.tolist()):
            rival = max(q[i, k] for k in range(3) if k != y)
            boosted = -q[i, y].log() - (1.0001 - rival).log()
            total = total + boosted + beta * kl(p, q, i) * (1 - p[i, y])
        return total / 6

    return loss


# objective, threat, attack, loss of the clean and the attacked probabilities
CASES = {
    "pgd": (PGD(steps=3), LINF, ce_attack(uniform, 3, 2.5 * 0.1 / 3), None),
    "pgd, step given": (PGD(steps=3, step_size="1/50"), LINF, ce_attack(uniform, 3, 0.02), None),
    "pgd, l2": (PGD(steps=3), L2, ce_attack(uniform, 3, 2.5 * 0.5 / 3), None),
    "fast": (Fast(), LINF, ce_attack(uniform, 1, 0.125), None),
    "fast, alpha given": (Fast(alpha=0.5), LINF, ce_attack(uniform, 1, 0.05), None),
    "fast, l2": (Fast(), L2, ce_attack(uniform, 1, 0.625), None),
    "trades": (TRADES(steps=3), LINF, kl_attack(3, 2.5 * 0.1 / 3), trades(6)),
    "trades, step given": (TRADES(steps=4, step_size=0.03, beta=2), LINF, kl_attack(4, 0.03), trades(2)),
    "trades, l2": (TRADES(steps=3, beta=1), L2, kl_attack(3, 2 * 0.5 / 3), trades(1)),
    "mart": (MART(steps=3), LINF, ce_attack(gaussian, 3, 2.5 * 0.1 / 3), mart(5)),
    "mart, step given": (MART(steps=2, step_size=0.04, beta=1), LINF, ce_attack(gaussian, 2, 0.04), mart(1)),
    "mart, l2": (MART(steps=2), L2, ce_attack(gaussian, 2, 2.5 * 0.5 / 2), mart(5)),
}


def gradients(net, value):
    return torch.autograd.grad(value, [p for p in net.parameters() if p.requires_grad])


@pytest.mark.parametrize("over", ["weights", "scores"])
@pytest.mark.parametrize("case", CASES)
def test_the_loss_equals_a_slow_computation(case, over):
    objective, threat, attack, slow = CASES[case]
    net = small(dropout=True, over=over)
    seen, _ = record(net)
    torch.manual_seed(9)  # only the dropout of the training passes draws from these numbers
    with once(net):
        loss = objective(net, BATCH, context(threat))
    adversarial = seen[-1]
    # Where KL is near 0, so is its gradient, and the direction of its few digits is all that l2 sees.
    near = 5e-4 if threat is L2 else 1e-5
    torch.testing.assert_close(adversarial, attack(net, threat), rtol=0, atol=near)
    assert (adversarial - X).abs().max() > 0.02

    torch.manual_seed(9)
    if slow is None:
        q = net(adversarial).softmax(1)
        value, shares = ce(q), {"robust_accuracy": q}
    else:
        p, q = net(X).softmax(1), net(adversarial).softmax(1)
        value, shares = slow(p, q), {"accuracy": p, "robust_accuracy": q}
    torch.testing.assert_close(loss.value, value, rtol=1e-4, atol=1e-6)
    for name, probabilities in shares.items():
        right = sum(int(probabilities[i].argmax() == Y[i]) for i in range(6))
        assert float(loss.metrics[name]) == pytest.approx(right / 6)
    assert all(not metric.requires_grad for metric in loss.metrics.values())
    for found, expected in zip(gradients(net, loss.value), gradients(net, value), strict=True):
        assert found.any()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_natural_is_the_cross_entropy_of_clean_images():
    net = small()
    loss = Natural()(net, BATCH, context(None))
    p = net(X).softmax(1)
    torch.testing.assert_close(loss.value, ce(p))
    assert float(loss.metrics["accuracy"]) == pytest.approx(float((p.argmax(1) == Y).float().mean()))


def test_trades_reports_its_two_terms():
    net = small()
    loss = TRADES(beta=3, steps=2)(net, BATCH, context(LINF))
    terms = loss.metrics
    torch.testing.assert_close(loss.value.detach(), terms["clean_loss"] + 3 * terms["stability_loss"])
    torch.testing.assert_close(terms["clean_loss"], ce(net(X).softmax(1)).detach())
    assert terms["stability_loss"] > 0
    alone = TRADES(beta=0, steps=2)(net, BATCH, context(LINF))
    torch.testing.assert_close(alone.value.detach(), terms["clean_loss"])


@pytest.mark.parametrize("objective", [TRADES(steps=2), MART(steps=2), PGD(steps=2), Fast()])
def test_saturated_logits_give_finite_gradients(objective):
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        net[1].weight.mul_(2000)
    assert (net(X).softmax(1) == 0).any()
    loss = objective(net, BATCH, context(LINF))
    assert loss.value.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(net, loss.value))


def test_the_cross_entropy_at_the_attack_exceeds_that_of_the_image():
    net = small()
    clean = F.cross_entropy(net(X), Y)
    weak, strong = (PGD(steps=steps)(net, BATCH, context(LINF)).value for steps in (1, 20))
    assert strong >= weak > clean + 0.005
