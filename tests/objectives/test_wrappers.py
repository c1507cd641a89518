"""Objectives over other objectives, and those that learn from a teacher, against literal computations."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hydraprune.core.errors import SpecError
from hydraprune.core.objective import Batch, Clock
from hydraprune.core.plain import once, plain_copy
from hydraprune.core.threat import ThreatModel
from hydraprune.masks.view import MaskView
from hydraprune.objectives import OBJECTIVES
from hydraprune.objectives.awp import AWP
from hydraprune.objectives.distill import Distill
from hydraprune.objectives.free import Free
from hydraprune.objectives.natural import Natural
from hydraprune.objectives.pgd import PGD
from hydraprune.objectives.pwoa import PwoA
from hydraprune.objectives.trades import TRADES
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.snip import SNIP
from hydraprune.train import Optim, fit
from objectives.small import BATCH, context, cross_entropy_of, literal_attack, record, small

X, Y = BATCH
LINF = ThreatModel(eps=0.1)
both = pytest.mark.parametrize("over", ["weights", "scores"])


def teacher() -> nn.Module:
    torch.manual_seed(7)
    return small().eval().requires_grad_(False)


def taught(threat=None, seed=0):
    ctx = context(threat, seed)
    ctx.networks = {"teacher": teacher()}
    return ctx


def worst(net: nn.Module, seed: int) -> torch.Tensor:
    """The images of PGD with 3 steps from a uniform start."""
    first = LINF.sample(X, torch.Generator().manual_seed(seed))
    return literal_attack(net, X, first, LINF, cross_entropy_of(Y), 3, 0.02)


def perturbed(net: nn.Module, images: torch.Tensor, gamma: float) -> nn.Module:
    """A plain copy of `net` with each weight (not bias) moved along its gradient, where it is not masked."""
    plain = plain_copy(net).requires_grad_()
    F.cross_entropy(plain(images), Y).backward()
    for parameter in (p for p in plain.parameters() if p.dim() > 1):
        g = torch.where(parameter == 0, 0.0, parameter.grad)
        length = gamma * parameter.detach().square().sum().sqrt() / g.square().sum().sqrt()
        parameter.data += length * g
    plain.zero_grad()
    return plain


@both
@pytest.mark.parametrize("base", [Natural(), PGD(steps=3, step_size=0.02)], ids=lambda base: base.kind)
def test_awp_takes_the_gradient_at_the_worst_weights_and_leaves_it_at_the_old_ones(base, over):
    net = small(norm=True, over=over)
    state = copy.deepcopy(net.state_dict())
    images = X if base.kind == "natural" else worst(plain_copy(net), seed=3)
    reference = perturbed(net, images, 0.5)
    reference[1].load_state_dict({k.removeprefix("1."): v for k, v in state.items() if k.startswith("1.")})
    expected = F.cross_entropy(reference(images), Y)
    expected.backward()

    seen, _ = record(net)
    ctx = context(LINF, seed=3)
    with once(net):
        loss = AWP(base=base, gamma=0.5)(net, BATCH, ctx)
    torch.testing.assert_close(loss.value, expected)
    assert loss.value > F.cross_entropy(plain_copy(net).eval()(X), Y).detach() * 0.9
    assert len(seen) == 2
    assert torch.equal(seen[0], seen[1])
    torch.testing.assert_close(seen[0], images)
    loss.value.backward()
    ctx.settle()
    assert not ctx.after_backward
    torch.testing.assert_close(net[1].running_mean, reference[1].running_mean)
    assert int(net[1].num_batches_tracked) == 1
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name]) or name.startswith("1."), name
    for name, (module,) in MaskView(net).modules.items():
        slope = reference.get_parameter(name).grad
        if over == "scores":
            (source,) = module.parametrizations.weight
            slope = slope * MaskView(net).weights()[name] * source.score.sign()
            torch.testing.assert_close(source.score.grad, slope, atol=1e-6, rtol=1e-4)
        else:
            torch.testing.assert_close(module.weight.grad, slope, atol=1e-6, rtol=1e-4)


def test_fit_moves_the_old_weights_by_the_gradient_at_the_worst_ones():
    class Once:
        def __len__(self):
            return 1

        def epoch(self, number):
            yield BATCH

    net = small()
    reference = perturbed(net, X, 0.3)
    F.cross_entropy(reference(X), Y).backward()
    old = {name: p.detach().clone() for name, p in net.named_parameters()}
    optim = Optim(lr=0.1, momentum=0, weight_decay=0, schedule="constant")
    fit(net, list(net.named_parameters()), Once(), AWP(base=Natural(), gamma=0.3), epochs=1, optim=optim)
    for name, p in net.named_parameters():
        expected = old[name] - 0.1 * reference.get_parameter(name).grad
        torch.testing.assert_close(p.detach(), expected, atol=1e-6, rtol=1e-4)


def test_awp_waits_for_its_warmup():
    net, ctx = small(), context(LINF)
    objective = AWP(base=Natural(), gamma=0.5, warmup=2)
    calm = [torch.equal(objective(net, BATCH, ctx).value, Natural()(net, BATCH, ctx).value) for ctx.clock in [
        Clock(step, 3, 4) for step in (0, 5)
    ]]  # fmt: skip
    ctx.clock = Clock(6, 3, 4)
    assert [*calm, objective(net, BATCH, ctx).value > Natural()(small(), BATCH, ctx).value] == [True] * 3


def test_awp_serves_pruners_batch_after_batch():
    net = small()
    batches = [Batch(X.roll(shift, 0), Y) for shift in (0, 1)]
    probe = Probe(torch.Generator().manual_seed(0), AWP(base=Natural(), gamma=0.3), None, lambda: batches)
    both = SNIP(batches=2).score(MaskView(net), probe)
    each = []
    for images in batches:
        one = Probe(torch.Generator().manual_seed(0), AWP(base=Natural(), gamma=0.3), None, lambda i=images: [i])
        each.append(SNIP().score(MaskView(net), one))
    for name, score in both.items():
        torch.testing.assert_close(score, (each[0][name] + each[1][name]) / 2)


def test_wrappers_take_as_many_steps_as_what_they_wrap():
    assert AWP(base=Free(replays=3)).steps_per_batch() == 3
    assert Distill(base=AWP(base=Free(replays=3))).steps_per_batch() == 3
    assert TRADES().steps_per_batch() == 1
    assert AWP(base=Distill()).networks() == Distill(base=PwoA()).networks() == {"teacher"}
    assert AWP().networks() == set()


@pytest.mark.parametrize(("temperature", "steps"), [(1.0, 4), (3.0, 4), (3.0, 0)])
def test_distillation_is_the_divergence_from_the_teacher_where_it_is_largest(temperature, steps):
    net, master = small(), teacher()
    p = (master(X) / temperature).softmax(1)

    def kl(logits, i):
        q = (logits / temperature).softmax(1)
        return sum(p[i, k] * (p[i, k].log() - q[0, k].log()) for k in range(3))

    images = X
    if steps:
        first = X + 0.001 * torch.randn(X.shape, generator=torch.Generator().manual_seed(3))
        images = literal_attack(net, X, first, LINF, kl, steps, 2.5 * 0.1 / steps)
        assert (images - X).abs().max() > 0.09
    term = temperature**2 * sum(kl(net(images[i : i + 1]), i) for i in range(6)) / 6
    expected = F.cross_entropy(net(X), Y) + 0.7 * term
    loss = Distill(weight=0.7, temperature=temperature, steps=steps)(net, BATCH, taught(LINF, seed=3))
    torch.testing.assert_close(loss.value, expected)
    torch.testing.assert_close(loss.metrics["distillation_loss"], term.detach())
    assert "accuracy" in loss.metrics
    for ours, theirs in zip(
        *(torch.autograd.grad(v, list(net.parameters())) for v in (loss.value, expected)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_rslad_is_two_distillations_without_labels():
    settings = {"kind": "distill", "weight": "1/6", "steps": 0, "base": None}
    rslad = OBJECTIVES.make({"kind": "distill", "weight": "5/6", "steps": 2, "base": settings}, "objective")
    net = small()
    loss = rslad(net, BATCH, taught(LINF)).value
    parts = [
        Distill(base=None, weight=weight, steps=steps)(net, BATCH, taught(LINF)).value
        for weight, steps in ((5 / 6, 2), (1 / 6, 0))
    ]
    torch.testing.assert_close(loss, sum(parts))
    other = Batch(X, (Y + 1) % 3)
    torch.testing.assert_close(loss, rslad(net, other, taught(LINF)).value)


def deep() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)
    )


def nhsic(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """From kernel matrices, with inverses."""
    m = len(a)
    centre = torch.eye(m).double() - 1 / m
    ra, rb = (k @ centre @ torch.linalg.inv(k @ centre + 1e-5 * m * torch.eye(m).double()) for k in (a, b))
    return (ra @ rb).trace()


def kernel(h: torch.Tensor, sigma: float) -> torch.Tensor:
    rows = h.flatten(1).double()
    d = rows.shape[1]
    return torch.stack(
        [torch.stack([(-(a - b).square().sum() / (2 * sigma**2 * d)).exp() for b in rows]) for a in rows]
    )


def test_pwoa_is_distillation_and_bottleneck():
    net, master = deep(), teacher()
    logits = net(X)
    hidden = [net[:2](X), net[:5](X)]
    p, q = ((z.double() / 30).softmax(1) for z in (master(X), logits))
    distilled = 900 * sum(p[i, k] * (p[i, k] / q[i, k]).log() for i in range(6) for k in range(3)) / 6 / 3
    labels = torch.tensor([[float(a == b) for b in Y] for a in Y]).double()
    to_input = sum(nhsic(kernel(h, 5), kernel(X, 5)) for h in hidden)
    to_label = sum(nhsic(kernel(h, 5), labels) for h in hidden)
    expected = 10 * distilled + 0.3 * to_input - 0.2 * to_label
    loss = PwoA(to_input=0.3, to_label=0.2)(net, BATCH, taught())
    torch.testing.assert_close(loss.value, expected.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss.metrics["hsic_label"], to_label.detach(), rtol=1e-3, atol=1e-4)
    slopes = (torch.autograd.grad(v, list(net.parameters())) for v in (loss.value, expected))
    for ours, theirs in zip(*slopes, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-2)
    alone = PwoA(to_input=0, to_label=0)(deep(), BATCH, taught())
    torch.testing.assert_close(alone.value, (10 * distilled).float())
    assert "hsic_input" not in alone.metrics


def test_pwoa_looks_at_natural_images_alone_and_leaves_no_hook():
    net = deep()
    seen, attacked = record(net)
    PwoA()(net, BATCH, taught(LINF))
    assert len(seen) == 1
    assert torch.equal(seen[0], X)
    assert not attacked
    assert all(not module._forward_pre_hooks for module in list(net.modules())[1:])


@pytest.mark.parametrize("objective", [Distill(), PwoA(), AWP(base=Distill())], ids=lambda objective: objective.kind)
def test_without_a_teacher_it_says_what_to_add(objective):
    with pytest.raises(SpecError, match=r"objective '\w+' needs the network 'teacher'; give `networks={'teacher'"):
        objective(small(), BATCH, context(LINF))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "awp", "base": {"kind": "trades", "beta": -1}}, r"objective\.base\.beta: "),
        ({"kind": "awp", "base": None}, r"objective\.base: expected"),
        ({"kind": "awp", "gamma": 0}, r"objective\.gamma: "),
        ({"kind": "distill", "base": {"kind": "awp", "base": "trade"}}, r"base\.base.*did you mean 'trades'"),
        ({"kind": "distill", "temperature": 0}, r"objective\.temperature: "),
        ({"kind": "pwoa", "sigma": 0}, r"objective\.sigma: "),
    ],
)
def test_an_objective_inside_an_objective_is_checked_with_its_path(settings, message):
    with pytest.raises(SpecError, match=message):
        OBJECTIVES.make(settings, "objective")
