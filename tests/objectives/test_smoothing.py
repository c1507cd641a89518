"""The objectives of randomized smoothing against slow computations that draw the same noise."""

import copy

import pytest
import torch

from hydraprune.core.errors import SpecError
from hydraprune.core.plain import once
from hydraprune.core.threat import ThreatModel
from hydraprune.objectives import OBJECTIVES
from hydraprune.objectives.gaussian import Gaussian
from hydraprune.objectives.smoothadv import SmoothAdv
from hydraprune.objectives.stability import Stability
from objectives.small import BATCH, context, record, small

X, Y = BATCH
L2 = ThreatModel(norm="l2", eps=0.5)
KINDS = {"gaussian": (1, 0), "stability": (2, 0), "smoothadv": (1, 10)}  # training passes, passes of the attack
kinds = pytest.mark.parametrize("kind", KINDS)
both = pytest.mark.parametrize("over", ["weights", "scores"])


def noise(sigma, draws=1, seed=0):
    return sigma * torch.randn(draws, *X.shape, generator=torch.Generator().manual_seed(seed))


def ce(logits, y):
    return -logits.exp()[y].div(logits.exp().sum()).log()


def gradients(net, value):
    moving = [p for p in net.parameters() if p.requires_grad]
    return torch.autograd.grad(value, moving)


def same(net, loss, expected):
    torch.testing.assert_close(loss.value, expected, atol=1e-6, rtol=1e-5)
    for ours, theirs in zip(gradients(net, loss.value), gradients(net, expected), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


@both
def test_gaussian_is_the_loss_at_noisy_images(over):
    net = small(over=over)
    loss = Gaussian(sigma=0.5)(net, BATCH, context(None, seed=3))
    noisy = X + noise(0.5, seed=3)[0]
    assert noisy.min() < 0
    assert noisy.max() > 1
    logits = net(noisy)
    same(net, loss, sum(ce(logits[i], Y[i]) for i in range(6)) / 6)
    assert loss.metrics["accuracy"] == sum(int(logits[i].argmax() == Y[i]) for i in range(6)) / 6


@both
def test_stability_is_clean_loss_and_divergence_with_gradients_through_both(over):
    net = small(over=over)
    loss = Stability(beta=3, sigma=0.5)(net, BATCH, context(None, seed=3))
    clean = net(X)
    p, q = clean.softmax(1), net(X + noise(0.5, seed=3)[0]).softmax(1)
    kl = sum(p[i, k] * (p[i, k] / q[i, k]).log() for i in range(6) for k in range(3)) / 6
    same(net, loss, sum(ce(clean[i], Y[i]) for i in range(6)) / 6 + 3 * kl)
    torch.testing.assert_close(loss.metrics["stability_loss"], kl.detach())


def literal(net, n, steps, size):
    """Gradient steps of l2 PGD on the smoothed network, one image and one draw after the other."""
    net, found = copy.deepcopy(net).eval(), []
    for i, image in enumerate(X):
        delta = torch.zeros_like(image)
        for _ in range(steps):
            delta.requires_grad_()
            mean = sum(net((image + delta + draw[i])[None]).softmax(1)[0, Y[i]] for draw in n) / len(n)
            (g,) = torch.autograd.grad(-mean.log(), delta)
            delta = delta.detach() + size * g / g.norm()
            if delta.norm() > L2.eps:
                delta = delta * L2.eps / delta.norm()
            delta = (image + delta).clamp(0, 1) - image
        found.append(image + delta)
    return torch.stack(found)


@both
@pytest.mark.parametrize(("draws", "size"), [(1, None), (3, None), (3, 0.4)])
def test_smoothadv_attacks_the_log_of_the_mean_probability(over, draws, size):
    net = small(over=over)
    objective = SmoothAdv(sigma=0.5, draws=draws, steps=4, step_size=size)
    with once(net):
        loss = objective(net, BATCH, context(L2, seed=3))
    n = noise(0.5, draws, seed=3)
    worst = literal(net, n, 4, 2 * L2.eps / 4 if size is None else size)
    logits = [net(worst + draw) for draw in n]
    same(net, loss, sum(ce(z[i], Y[i]) for z in logits for i in range(6)) / (6 * draws))
    right = sum(int(z[i].argmax() == Y[i]) for z in logits for i in range(6))
    assert loss.metrics["robust_accuracy"] == pytest.approx(right / (6 * draws))


def test_smoothadv_keeps_one_image_per_draws_in_the_ball_and_reuses_the_noise():
    net = small()
    training, attack = record(net)
    SmoothAdv(sigma=0.5, draws=2, steps=8)(net, BATCH, context(L2, seed=3))
    n = noise(0.5, 2, seed=3)
    (seen,) = training
    assert len(attack) == 8
    for images in [seen, *attack]:
        clean = images.unflatten(0, (2, 6)) - n
        torch.testing.assert_close(clean[0], clean[1], atol=1e-6, rtol=0)
        assert (L2.distance(X, clean[0]) <= L2.eps + 1e-5).all()
        assert clean.min() >= -1e-6
        assert clean.max() <= 1 + 1e-6
    torch.testing.assert_close(attack[0].unflatten(0, (2, 6)), X + n)
    assert (L2.distance(X, clean[0]) > 0.1).all()
    assert (seen < 0).any()  # noise is not clipped


def test_smoothadv_finds_a_higher_loss_than_noise_alone():
    net = small()
    loss = SmoothAdv(sigma=0.25, draws=4)(net, BATCH, context(L2, seed=3)).value
    calm = SmoothAdv(sigma=0.25, draws=4)(net, BATCH, context(ThreatModel(norm="l2", eps=0), seed=3)).value
    plain = torch.nn.functional.cross_entropy(net((X + noise(0.25, 4, seed=3)).flatten(0, 1)), Y.repeat(4))
    torch.testing.assert_close(calm, plain)
    assert loss > plain + 0.05


@both
@kinds
def test_gradients_arrive_and_only_training_passes_touch_the_model(kind, over):
    net = small(norm=True, over=over)
    training, attack = record(net)
    still = {name: p.detach().clone() for name, p in net.named_parameters()}
    with once(net):
        loss = OBJECTIVES.make({"kind": kind, "sigma": "1/4"}, "objective")(net, BATCH, context(L2))
        assert all(p.grad is None for p in net.parameters())
        loss.value.backward()
    assert (len(training), len(attack)) == KINDS[kind]
    assert int(net[1].num_batches_tracked) == len(training)
    assert all(torch.equal(p, still[name]) for name, p in net.named_parameters())
    for name, p in net.named_parameters():
        assert (p.grad is not None) == p.requires_grad
        if name.endswith("score") or (over == "weights" and name.endswith("weight")):
            assert p.grad.abs().sum() > 0
    assert all(not value.requires_grad for value in loss.metrics.values())


@kinds
def test_noise_is_fresh_each_step_and_the_same_again_from_the_same_seed(kind):
    net, ctx = small(), context(L2, seed=3)
    objective = OBJECTIVES.make(kind, "objective")
    first, second = (objective(net, BATCH, ctx).value for _ in range(2))
    assert first != second
    assert first == objective(net, BATCH, context(L2, seed=3)).value


def test_only_smoothadv_has_an_adversary_and_it_must_be_l2():
    net = small()
    for objective in (Gaussian(), Stability()):
        assert objective(net, BATCH, context(None)).value.isfinite()
    with pytest.raises(SpecError, match="'smoothadv' needs a threat model"):
        SmoothAdv()(net, BATCH, context(None))
    with pytest.raises(SpecError, match="made for l2 balls, not linf; write `norm: l2`"):
        SmoothAdv()(net, BATCH, context(ThreatModel(eps=0.1)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "gaussian", "sigma": 0}, "objective.sigma: Input should be greater than 0"),
        ({"kind": "stability", "sigma": -1}, "objective.sigma"),
        ({"kind": "stability", "beta": -1}, "objective.beta"),
        ({"kind": "smoothadv", "draws": 0}, "objective.draws"),
        ({"kind": "smoothadv", "sigma": 0}, "objective.sigma"),
    ],
)
def test_refuses_bad_settings(settings, message):
    with pytest.raises(SpecError, match=message):
        OBJECTIVES.make(settings, "objective")
