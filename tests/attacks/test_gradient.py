"""Gradient ascent against closed forms, against a literal loop, and in the company of a model that is being trained."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from hydraprune.attacks.gradient import pgd
from hydraprune.attacks.pgd import margin
from hydraprune.core.errors import SpecError
from hydraprune.core.plain import once
from hydraprune.core.threat import ThreatModel


def linear(shape: tuple[int, ...], classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), classes))


def conv(classes: int = 4) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.LazyLinear(classes),
    )


def difference(target: Tensor, y: Tensor, logits: Tensor) -> Tensor:
    return (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])).squeeze(1)


@pytest.mark.parametrize("start", ["zero", "uniform", "gaussian"])
@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 5, 4), (1, 8, 8)])
@pytest.mark.parametrize("eps", [0.01, 0.1, 0.25])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_reaches_the_optimum_of_a_linear_model(norm, eps, shape, start):
    net, threat = linear(shape, 5), ThreatModel(norm=norm, eps=eps)
    x = 0.3 + 0.4 * torch.rand(6, *shape)  # the pixel range does not bind
    y, target = torch.arange(6) % 5, (torch.arange(6) + 2) % 5
    loss = partial(difference, target, y)
    found = pgd(net, x, threat, loss, steps=40, step_size=eps / 4, start=start, rng=torch.Generator())

    weight = net[1].weight
    best = eps * torch.linalg.vector_norm(weight[target] - weight[y], ord=1 if norm == "linf" else 2, dim=1)
    gain = loss(net(found)) - loss(net(x))
    assert (gain >= 0.99 * best).all()
    assert (gain <= best * (1 + 1e-4) + 1e-5).all()
    assert (threat.distance(x, found) <= eps * (1 + 1e-5)).all()
    assert not found.requires_grad


@pytest.mark.parametrize("eps", [0.05, 0.5, 1.0])
def test_linf_optimum_where_the_pixel_range_binds(eps):
    net, threat, x = linear((3, 4, 4), 2), ThreatModel(eps=eps), torch.rand(8, 3, 4, 4)
    y = torch.arange(8) % 2
    loss = partial(F.cross_entropy, target=y, reduction="none")  # of two classes: grows with the difference of logits
    found = pgd(net, x, threat, loss, steps=20, step_size=eps / 4, start="uniform", rng=torch.Generator())
    direction = (net[1].weight[1 - y] - net[1].weight[y]).view_as(x).sign()
    torch.testing.assert_close(found, (x + eps * direction).clamp(0, 1))


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_the_margin_loss_finds_the_nearest_class_of_a_linear_model(norm, dual):
    net, x, eps = linear((3, 6, 6), 7), 0.4 + 0.2 * torch.rand(16, 3, 6, 6), 0.05
    logits, weight = net(x).detach(), net[1].weight.detach()
    y = logits.argmax(1)
    reach = eps * torch.linalg.vector_norm(weight[None] - weight[y][:, None], ord=dual, dim=2)
    best = (logits - logits.gather(1, y[:, None]) + reach).scatter(1, y[:, None], -torch.inf).amax(1)
    attack = partial(pgd, net, x, ThreatModel(norm=norm, eps=eps), partial(margin, y=y), steps=30, step_size=eps / 5)
    rng = torch.Generator().manual_seed(0)
    found = torch.stack([margin(net(attack(start="uniform", rng=rng)), y) for _ in range(10)]).amax(0)
    torch.testing.assert_close(found, best, rtol=0.01, atol=0.01 * float(reach.max()))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_equals_the_literal_loop(norm):
    """For l2 this is the inner maximisation of TRADES: gradient steps on a difference, renormalised to eps."""
    net, x, eps, steps = conv().eval(), torch.rand(5, 3, 6, 6), 0.3, 6
    with torch.no_grad():
        clean = net(x).softmax(1)
    size = 2 * eps / steps

    delta = 0.001 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    for _ in range(steps):
        delta = delta.detach().requires_grad_()
        F.kl_div(net(x + delta).log_softmax(1), clean, reduction="sum").backward()
        for i, g in enumerate(delta.grad):
            with torch.no_grad():
                delta[i] += size * (g.sign() if norm == "linf" else g / g.norm())
        with torch.no_grad():
            delta = delta.clamp(-eps, eps) if norm == "linf" else delta.renorm(2, 0, eps)
            delta = (x + delta).clamp(0, 1) - x

    def loss(logits):
        return F.kl_div(logits.log_softmax(1), clean, reduction="none").sum(1)

    rng = torch.Generator().manual_seed(3)
    found = pgd(net, x, ThreatModel(norm=norm, eps=eps), loss, steps=steps, step_size=size, start="gaussian", rng=rng)
    torch.testing.assert_close(found, x + delta, rtol=0, atol=1e-5)


@pytest.mark.parametrize("start", ["zero", "uniform", "gaussian"])
def test_starts(start):
    seen = []
    net, x, threat = linear((3, 4, 4), 3), torch.rand(50, 3, 4, 4), ThreatModel(eps=0.0005)
    net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    pgd(net, x, threat, margin0, steps=1, step_size=0.1, start=start, rng=torch.Generator().manual_seed(1))
    rng = torch.Generator().manual_seed(1)
    expected = {
        "zero": lambda: x,
        "uniform": lambda: threat.sample(x, rng),
        "gaussian": lambda: x + 0.001 * torch.randn(x.shape, generator=rng),
    }[start]()
    assert torch.equal(seen[0], expected)


def margin0(logits: Tensor) -> Tensor:
    return margin(logits, torch.zeros(len(logits), dtype=torch.int64))


def test_refuses_an_unknown_start():
    with pytest.raises(SpecError, match=r"'random'.*uniform"):
        pgd(conv(), torch.rand(1, 3, 6, 6), ThreatModel(eps=0.1), margin0, steps=1, step_size=0.1,
            start="random", rng=torch.Generator())  # fmt: skip


def test_eps_zero_changes_nothing():
    net, x = conv().eval(), torch.rand(2, 3, 6, 6)
    found = pgd(net, x, ThreatModel(eps=0), margin0, steps=2, step_size=0.1, start="gaussian", rng=torch.Generator())
    assert torch.equal(found, x)


def test_leaves_the_model_and_the_global_random_numbers_alone():
    net, x = conv(), torch.rand(4, 3, 6, 6)
    net(x).sum().backward()
    net.eval()
    net[1].train()  # a mode of its own, which the attack must not "restore"
    net[1].momentum = 0.0  # so that only a change of mode could move the statistics
    state = {name: value.clone() for name, value in net.state_dict().items() if "num_batches" not in name}
    gradients = [p.grad.clone() for p in net.parameters()]
    modes = [module.training for module in net.modules()]
    before = torch.get_rng_state()
    with torch.no_grad():
        pgd(net, x, ThreatModel(eps=0.1), margin0, steps=3, step_size=0.1, start="uniform", rng=torch.Generator())
    assert torch.equal(torch.get_rng_state(), before)
    assert modes == [module.training for module in net.modules()]
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients, strict=True))
    assert all(torch.equal(net.state_dict()[name], value) for name, value in state.items())


class Scores(nn.Module):
    """Stands for a learned mask: weight times a score that moves."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.score = nn.Parameter(torch.rand_like(weight))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.score


def test_shares_the_graph_of_learned_masks_without_using_it_up():
    net, x = conv().eval(), torch.rand(4, 3, 6, 6)
    net(x)
    mask = Scores(net[0].weight)
    parametrize.register_parametrization(net[0], "weight", mask)
    threat, rng = ThreatModel(eps=0.1), torch.Generator()
    with once(net):
        found = pgd(net, x, threat, margin0, steps=3, step_size=0.1, start="uniform", rng=rng)
        assert all(p.grad is None for p in net.parameters())
        net(found).square().sum().backward()  # raises if the attack has freed the graph from scores to weights
    (expected,) = torch.autograd.grad(net(found).square().sum(), mask.score)
    torch.testing.assert_close(mask.score.grad, expected)


def test_works_under_bf16_autocast():
    net, x, y = conv().eval(), torch.rand(8, 3, 6, 6), torch.arange(8) % 4
    net(x)
    seen = set()

    def loss(logits):
        seen.add(logits.dtype)
        return F.cross_entropy(logits, y, reduction="none")

    with torch.autocast("cpu", torch.bfloat16):
        found = pgd(net, x, ThreatModel(eps=0.1), loss, steps=5, step_size=0.03, start="zero", rng=torch.Generator())
    assert seen == {torch.float32}
    assert found.dtype == torch.float32
    assert (loss(net(found)) > loss(net(x))).all()
