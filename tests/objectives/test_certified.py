"""Certified objectives against reference losses, written-out bounds and each other."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bounds.golden import NETS, load
from hydraprune.bounds import batch_statistics, margin_bounds
from hydraprune.bounds.statistics import normalised_by
from hydraprune.core.errors import SpecError
from hydraprune.core.objective import Batch, Clock, Context
from hydraprune.core.plain import once
from hydraprune.core.threat import ThreatModel
from hydraprune.objectives import OBJECTIVES
from hydraprune.objectives.certified import verified
from hydraprune.objectives.crown_ibp import CrownIBP
from hydraprune.objectives.ibp import IBP
from hydraprune.objectives.mixtrain import MixTrain
from hydraprune.objectives.mtl_ibp import MTLIBP
from hydraprune.objectives.sabr import SABR
from hydraprune.objectives.schedule import Ramp
from hydraprune.objectives.warmup import warmup_loss
from objectives.small import BATCH, context, record, small

LINF = ThreatModel(eps=0.05)
X, Y = BATCH
SETTINGS: dict[str, dict[str, Any]] = {
    "ibp": {},
    "crown-ibp": {"beta_final": 0.5, "kappa_final": 0.3},
    "mixtrain": {"probability": 1, "images": 4},
    "sabr": {"steps": 2, "tau": 0.3, "shrink": 0.8},
    "mtl-ibp": {"steps": 2, "alpha": 0.3},
}
kinds = pytest.mark.parametrize("kind", SETTINGS)
both = pytest.mark.parametrize("over", ["weights", "scores"])


def made(kind: str, **more: Any) -> Any:
    return OBJECTIVES.make({"kind": kind, **SETTINGS[kind], **more}, "objective")


def at(share: float, threat: ThreatModel = LINF, seed: int = 0) -> tuple[Ramp, Context]:
    """A ramp, and a context in which it stands at this share."""
    ctx = Context(threat, torch.Generator().manual_seed(seed), Clock(round(1000 * share), 100, 20))
    return Ramp(length=10), ctx


def gradients(net: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [p for p in net.parameters() if p.requires_grad], retain_graph=True))


def same(net: nn.Module, loss: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(gradients(net, loss), gradients(net, expected), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("method", ["ibp", "crown_ibp"])
@pytest.mark.parametrize("name", NETS)
def test_reference_losses_and_gradients(golden, name, method):
    net, arrays = load(golden / "bounds", name, torch.float64)
    batch = Batch(torch.from_numpy(arrays["x"]).double(), torch.from_numpy(arrays["y"]))
    objective = IBP() if method == "ibp" else CrownIBP(beta_final=1)
    loss = objective(net, batch, context(ThreatModel(eps="2/255")))
    np.testing.assert_allclose(loss.value.item(), arrays[f"f64/{method}/robust_ce"], rtol=1e-9)
    loss.value.backward()
    norms = {key.rpartition("/")[2]: value for key, value in arrays.items() if f"f64/{method}/gradnorm/" in key}
    for key, norm in norms.items():
        np.testing.assert_allclose(net.get_parameter(key).grad.norm().item(), norm, rtol=1e-9, atol=1e-9)
    margins = arrays[f"f64/{method}/margin_lb"][2]
    assert loss.metrics["verified_accuracy"] == pytest.approx((margins > 0).all(1).mean())
    assert loss.metrics["eps"] == pytest.approx(2 / 255)


@kinds
@both
def test_while_eps_is_0_training_is_natural(kind, over):
    net = small(norm=True, over=over)
    natural = OBJECTIVES.make("natural", "objective")(copy.deepcopy(net), BATCH, context(None))
    waiting = {"ramp": {"start": 1, "length": 5}}
    for settings, threat in ((waiting, LINF), ({}, ThreatModel(eps=0))):
        loss = made(kind, **settings)(copy.deepcopy(net), BATCH, context(threat))
        assert torch.equal(loss.value, natural.value)
        assert loss.metrics["eps"] == 0
        for name, value in loss.metrics.items():
            assert name == "eps" or value == natural.metrics["accuracy"], name


@kinds
def test_metrics_have_the_same_names_before_and_after_eps_grows(kind):
    ramp = Ramp(start=1, length=5)
    names = []
    for epoch in (0, 3, 6):
        ctx = Context(LINF, torch.Generator(), Clock(epoch, 1, 9))
        names.append(set(made(kind, ramp=ramp)(small(), BATCH, ctx).metrics))
    assert names[0] == names[1] == names[2]


@both
@pytest.mark.parametrize("share", [0.25, 1.0])
def test_kappa_and_beta_mix_losses_and_margins(over, share):
    net = small(over=over).eval()
    ramp, ctx = at(share)
    threat = ThreatModel(eps=share * LINF.eps)
    clean = F.cross_entropy(net(X), Y)
    interval, linear = (margin_bounds(net, X, Y, threat, method) for method in ("ibp", "crown-ibp"))
    loss = CrownIBP(ramp=ramp, beta_final=0.2, kappa_final=0.5)(net, BATCH, ctx).value
    beta, kappa = 1 - 0.8 * share, 1 - 0.5 * share
    worst = -(beta * linear + (1 - beta) * interval)
    same(net, loss, kappa * clean + (1 - kappa) * F.cross_entropy(worst, Y))
    same(net, IBP(ramp=ramp)(net, BATCH, ctx).value, F.cross_entropy(-interval, Y))
    assert not torch.equal(interval, linear)


def test_without_a_linear_share_crown_ibp_is_ibp_and_walks_no_way_back(monkeypatch):
    net = small()
    loss = CrownIBP(beta_final=0)(net, BATCH, context(LINF)).value
    same(net, loss, IBP()(net, BATCH, context(LINF)).value)
    monkeypatch.setattr("hydraprune.bounds.base.Analysis.margins", None)
    assert torch.equal(CrownIBP(beta_final=0)(net, BATCH, context(LINF)).value, loss)
    with pytest.raises(TypeError):
        CrownIBP(beta_final=2e-5)(net, BATCH, context(LINF))


def test_the_warm_up_fades_as_eps_grows():
    net = small()
    threat = ThreatModel(eps=0.25 * LINF.eps)
    ramp, ctx = at(0.25)
    plain, warm = (IBP(ramp=ramp, warmup=weight)(net, BATCH, ctx).value for weight in (0, 0.4))
    entering = []
    center, radius = (threat.box(X).lower + threat.box(X).upper) / 2, (threat.box(X).upper - threat.box(X).lower) / 2
    center = net[0](center)
    radius = F.conv2d(radius, net[0].weight.abs(), padding=1)
    entering.append(type(threat.box(X))(center - radius, center + radius))
    same(net, warm, plain + 0.4 * 0.75 * warmup_loss(threat.box(X), entering))
    ramp, ctx = at(1.0)
    assert torch.equal(*(IBP(ramp=ramp, warmup=weight)(net, BATCH, ctx).value for weight in (0, 0.4)))


def zonotope(net: nn.Sequential, x: Tensor, threat: ThreatModel, y: int) -> Tensor:
    """(K,) upper ends of f_j - f_y over the box of one image: every pixel and every open ReLU has its generator."""
    box = threat.box(x)
    center, radius = (box.lower + box.upper) / 2, (box.upper - box.lower) / 2
    generators = torch.diag(radius.flatten()).view(-1, *x.shape)
    for layer in net:
        if isinstance(layer, nn.ReLU):
            reach = generators.abs().sum(0)
            lower, upper = center - reach, center + reach
            news = []
            for index in torch.cartesian_prod(*[torch.arange(n) for n in center.shape]).view(-1, center.dim()):
                at = tuple(index.tolist())
                if lower[at] < 0 < upper[at]:
                    one = torch.zeros_like(center)
                    one[at] = 1
                    news.append(one * (-lower[at] * upper[at] / (upper[at] - lower[at]) / 2))
            share = torch.where(lower >= 0, 1.0, torch.where(upper <= 0, 0.0, upper / (upper - lower)))
            center = share * center + sum(news)
            generators = torch.stack([*(share * generators), *news])
        else:
            zero = layer(torch.zeros_like(center)[None])
            center, generators = layer(center[None])[0], layer(generators) - zero
    return center - center[y] + (generators - generators[:, y : y + 1]).abs().sum(0)


@pytest.mark.parametrize("seed", [0, 1])
def test_mixtrain_is_the_clean_loss_and_a_zonotope_on_the_drawn_images(seed):
    net = small().eval()
    objective = MixTrain(images=3, probability=1, weight=0.7)
    loss = objective(net, BATCH, context(LINF, seed)).value
    rng = torch.Generator().manual_seed(seed)
    torch.rand((), generator=rng)
    drawn = torch.randint(6, (3,), generator=rng)
    worst = torch.stack([zonotope(net, X[i], LINF, int(Y[i])) for i in drawn])
    same(net, loss, F.cross_entropy(net(X), Y) + 0.7 * F.cross_entropy(worst, Y[drawn]))


def test_mixtrain_bounds_four_batches_of_five():
    net = small().eval()
    clean = F.cross_entropy(net(X), Y)
    losses = [MixTrain()(net, BATCH, context(LINF, seed)).value for seed in range(200)]
    bounded = sum(not torch.equal(loss, clean) for loss in losses)
    assert 135 <= bounded <= 185
    assert torch.equal(MixTrain(probability=0)(net, BATCH, context(LINF)).value, clean)


def test_the_box_of_sabr_lies_in_that_of_the_threat_around_the_attacked_image():
    box = LINF.box(X)
    attacked = LINF.sample(X, torch.Generator().manual_seed(2))
    for tau in (0.1, 0.9):
        small_box = SABR(tau=tau).small_box(box, attacked)
        assert (small_box.lower >= box.lower - 1e-6).all()
        assert (small_box.upper <= box.upper + 1e-6).all()
        widths = (small_box.upper - small_box.lower) / (box.upper - box.lower)
        torch.testing.assert_close(widths, torch.full_like(widths, tau))
        distance = torch.maximum(small_box.lower - attacked, attacked - small_box.upper).clamp_min(0)
        assert distance.max() < 1e-6
        middle, radius = (small_box.lower + small_box.upper) / 2, tau * (box.upper - box.lower) / 2
        roomy = (attacked - radius >= box.lower) & (attacked + radius <= box.upper)
        assert roomy.any()
        torch.testing.assert_close(middle[roomy], attacked[roomy])


def literal_intervals(net: nn.Module, lower: Tensor, upper: Tensor, shrink: float) -> Tensor:
    """Worst logits of `small()` by hand, the upper end of each open ReLU `shrink` times itself."""
    center, radius = (lower + upper) / 2, (upper - lower) / 2
    center, radius = net[0](center), F.conv2d(radius, net[0].weight.abs(), padding=1)
    lower, upper = center - radius, center + radius
    upper = torch.where((lower < 0) & (upper > 0), shrink * upper.relu(), upper.relu()).flatten(1)
    lower = lower.relu().flatten(1)
    weight, bias = net[5].weight, net[5].bias
    merged = weight[Y][:, None] - weight[None]  # (B, K, N), row j gives f_y - f_j
    center, radius = (lower + upper) / 2, (upper - lower) / 2
    middle = (merged @ center[:, :, None])[..., 0] + bias[Y][:, None] - bias
    return (merged.abs() @ radius[:, :, None])[..., 0] - middle


@pytest.mark.parametrize("shrink", [1.0, 0.8])
def test_sabr_is_the_interval_loss_of_its_box(shrink, monkeypatch):
    net = small().eval()
    attacked = LINF.sample(X, torch.Generator().manual_seed(2))
    monkeypatch.setattr("hydraprune.objectives.sabr.attacked", lambda *_, **__: attacked)
    objective = SABR(tau=0.3, shrink=shrink)
    loss = objective(net, BATCH, context(LINF)).value
    worst = literal_intervals(net, *objective.small_box(LINF.box(X), attacked), shrink)
    same(net, loss, F.cross_entropy(worst, Y))


def test_with_the_whole_radius_sabr_is_ibp():
    net = small()
    same(net, SABR(tau=1, steps=1)(net, BATCH, context(LINF)).value, IBP()(net, BATCH, context(LINF)).value)


@pytest.mark.parametrize("norm", [False, True])
def test_mtl_ibp_is_a_mixture(norm):
    """Of `ibp`, and of the loss at attacked images that are normalised as the clean ones were."""
    net = small(norm=norm)
    if norm:
        net[1].momentum = 0.0  # the attack sees the running statistics, which are to stay
    ibp = IBP()(net, BATCH, context(LINF)).value
    losses = [MTLIBP(alpha=alpha, steps=2)(net, BATCH, context(LINF)) for alpha in (1, 0, 0.3)]
    same(net, losses[0].value, ibp)
    same(net, losses[2].value, 0.3 * ibp + 0.7 * losses[1].value)
    assert losses[1].value > F.cross_entropy(net(X), Y)


def test_the_attack_of_mtl_ibp_reaches_further_and_moves_no_statistics():
    net = small(norm=True)
    seen, _ = record(net)
    loss = MTLIBP(alpha=0, reach=2, steps=3)(net, BATCH, context(LINF))
    clean, attacked = seen
    assert torch.equal(clean, X)
    assert LINF.eps < (attacked - X).abs().max() <= 2 * LINF.eps + 1e-6
    assert net[1].num_batches_tracked == 1
    mean, var = (statistic(net[0](X), (0, 2, 3)) for statistic in (torch.mean, lambda t, d: t.var(d, correction=0)))
    normed = F.batch_norm(net[0](attacked), mean.detach(), var.detach(), net[1].weight, net[1].bias)
    expected = F.cross_entropy(net[5](normed.relu().flatten(1)), Y)
    torch.testing.assert_close(loss.value, expected)
    assert "forward" not in vars(net[1])


def test_norms_that_are_given_statistics_pass_their_gradient_on():
    net = small(norm=True)
    with batch_statistics(net) as statistics:
        expected = net(X).square().mean()
    assert net[1].num_batches_tracked == 1
    with normalised_by(statistics):
        found = net(X).square().mean()
    assert net[1].num_batches_tracked == 1
    same(net, found, expected)


@kinds
@both
def test_norm_statistics_are_moved_once_by_the_clean_images(kind, over):
    net = small(norm=True, over=over)
    fresh = copy.deepcopy(net)
    with once(net):
        made(kind)(net, BATCH, context(LINF))
    fresh(X)
    assert net[1].num_batches_tracked == 1
    torch.testing.assert_close(net[1].running_mean, fresh[1].running_mean)
    torch.testing.assert_close(net[1].running_var, fresh[1].running_var)


@pytest.mark.parametrize("kind", ["ibp", "crown-ibp"])
def test_bounds_are_those_of_the_network_as_the_clean_batch_normalises_it(kind):
    net, batch = small(norm=True).double(), Batch(X.double(), Y)
    objective = made(kind, kappa_final=None)
    loss = objective(net, batch, context(LINF)).value
    frozen, seen = copy.deepcopy(net).eval(), net[0](batch.x).detach()
    frozen[1].running_mean, frozen[1].running_var = seen.mean((0, 2, 3)), seen.var((0, 2, 3), correction=0)
    torch.testing.assert_close(loss, objective(frozen, batch, context(LINF)).value)
    direction = torch.randn_like(net[0].weight)
    (gradient,) = torch.autograd.grad(loss, net[0].weight)
    losses = []
    for step in (1e-6, -1e-6):
        moved = copy.deepcopy(net)
        moved[0].weight.data += step * direction
        losses.append(objective(moved, batch, context(LINF)).value.item())
    assert float((gradient * direction).sum()) == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-4)


@kinds
@both
@pytest.mark.parametrize("norm", [False, True])
def test_dead_channels_leave_finite_gradients(kind, over, norm):
    net = small(norm=norm, over=over)
    stored = net[0].parametrizations.weight.original if over == "scores" else net[0].weight
    with torch.no_grad():
        stored[:2] = 0
        net[0].bias[:2] = 0
        net[5].bias[:] = 0
    warm = {"warmup": 0.5} if kind in ("ibp", "crown-ibp") else {}
    with once(net):
        loss = made(kind, ramp={"length": 4, "initial": 0.5}, **warm)(net, BATCH, context(LINF))
    loss.value.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
    moving = [p for p in net.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in moving)


@pytest.mark.parametrize("kind", ["ibp", "crown-ibp"])
def test_bounds_are_computed_in_float32_whatever_the_autocast(kind):
    net = small()
    exact = made(kind, kappa_final=None)(net, BATCH, context(LINF)).value
    with torch.autocast("cpu", torch.bfloat16):
        loss = made(kind, kappa_final=None)(net, BATCH, context(LINF)).value
    assert torch.equal(loss, exact)


def test_an_image_is_verified_if_every_margin_is_above_zero_strictly():
    margins = torch.tensor([[0.0, 1.0, 1e-9], [1.0, 0.0, 0.0], [2.0, -1.0, 0.0], [0.0, 3.0, 3.0]])
    assert verified(margins) == 0.5


@kinds
def test_another_norm_is_refused_even_while_eps_is_0(kind):
    with pytest.raises(SpecError, match=rf"objective '{kind}' is made for linf balls, not l2; write `norm: linf`"):
        made(kind, ramp={"start": 1, "length": 5})(small(), BATCH, context(ThreatModel(norm="l2", eps=1)))


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"kind": "ibp", "kappa_final": 1.5}, "kappa_final"),
        ({"kind": "ibp", "warmup": -1}, "warmup"),
        ({"kind": "crown-ibp", "beta_final": -0.1}, "beta_final"),
        ({"kind": "mixtrain", "images": 0}, "images"),
        ({"kind": "mixtrain", "probability": 1.1}, "probability"),
        ({"kind": "sabr", "tau": 0}, "tau"),
        ({"kind": "sabr", "shrink": 0}, "shrink"),
        ({"kind": "mtl-ibp", "alpha": 2}, "alpha"),
        ({"kind": "mtl-ibp", "reach": 0}, "reach"),
        ({"kind": "ibp", "ramp": {"length": -1}}, r"ramp\.length"),
    ],
)
def test_settings_without_sense_are_refused(settings, path):
    with pytest.raises(SpecError, match=rf"^objective\.{path}: "):
        OBJECTIVES.make(settings, "objective")
