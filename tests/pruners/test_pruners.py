"""Scores of each method, on networks that the methods have never seen; and what the two stages move."""

import math

import pytest
import torch
from torch import Tensor, nn

from hydraprune.core.errors import SpecError
from hydraprune.core.objective import Batch
from hydraprune.core.threat import ThreatModel
from hydraprune.masks.budgets import ERK, Global, Uniform
from hydraprune.masks.source import FixedMask, LearnedMask
from hydraprune.masks.structures import Filter, Weight
from hydraprune.masks.view import MaskView
from hydraprune.objectives.natural import Natural
from hydraprune.objectives.pgd import PGD
from hydraprune.pruners import PRUNERS
from hydraprune.pruners.hydra import Hydra
from hydraprune.pruners.magnitude import Magnitude
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.pruning import prune
from hydraprune.pruners.random import Random
from hydraprune.train import Optim, fit

INITS = ["scaled", "kaiming_uniform", "kaiming_normal", "xavier_uniform", "xavier_normal"]


class Unseen(nn.Module):
    """Every kind of prunable layer, none of them where a pruner could expect it."""

    def __init__(self) -> None:
        super().__init__()
        self.volume = nn.Conv3d(1, 4, (1, 3, 3), padding=(0, 1, 1))
        self.grouped = nn.Conv2d(4, 8, 3, padding=1, groups=4, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.line = nn.Conv1d(6, 4, 5, dilation=2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.volume(x[:, None, :1]).squeeze(2)
        x = self.up(self.norm(self.grouped(x)).relu()).relu()
        return self.head(self.line(x.flatten(2)).relu().mean(2))


X = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0))
BATCH = Batch(X, torch.arange(12) % 3)


class Same:
    """The same batch, three times per epoch."""

    def __len__(self) -> int:
        return 3

    def epoch(self, number: int):
        return iter([BATCH] * 3)


def seeded(seed: int = 0) -> Probe:
    return Probe(torch.Generator().manual_seed(seed), Natural(), None, lambda: [BATCH])


def test_the_scaled_scores_follow_equation_4():
    view = MaskView(Unseen())
    fan_in = {"volume": 9, "grouped": 9, "up": 6 * 4, "line": 30, "head": 4}
    for name, score in Hydra().score(view, seeded()).items():
        weight, fan = view.weights()[name], fan_in[name.removesuffix(".weight")]
        expected = [math.sqrt(6 / fan) * w / float(weight.abs().max()) for w in weight.flatten().tolist()]
        torch.testing.assert_close(score.flatten(), torch.tensor(expected))


@pytest.mark.parametrize("sparsity", [0.3, 0.9, 0.99])
def test_hydra_starts_from_magnitude_pruning_in_each_layer(sparsity):
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Flatten(), nn.Linear(500, 20))
    masks = []
    for pruner in (Hydra(), Magnitude()):
        view = MaskView(net)
        prune(view, pruner, Uniform(sparsity=sparsity))
        masks.append(view.masks())
    for name, weight in view.weights().items():
        kept = weight.numel() - int(sparsity * weight.numel())
        assert torch.equal(masks[0][name], masks[1][name])
        best = set(weight.abs().flatten().argsort()[-kept:].tolist())
        assert set(masks[0][name].flatten().nonzero().flatten().tolist()) == best


@pytest.mark.parametrize(
    ("init", "deviation", "bound"),
    [
        ("kaiming_uniform", math.sqrt(2 / 400), math.sqrt(6 / 400)),
        ("kaiming_normal", math.sqrt(2 / 400), None),
        ("xavier_uniform", math.sqrt(2) * math.sqrt(2 / 1000), math.sqrt(2) * math.sqrt(6 / 1000)),
        ("xavier_normal", math.sqrt(2) * math.sqrt(2 / 1000), None),
    ],
)
def test_the_ablations_have_their_scale_and_follow_the_generator(init, deviation, bound):
    view, state = MaskView(nn.Linear(400, 600)), torch.get_rng_state()
    score = Hydra(init=init).score(view, seeded(1))["weight"]
    assert float(score.std()) == pytest.approx(deviation, rel=0.01)
    assert abs(float(score.mean())) < deviation / 50
    if bound is not None:
        assert 0.99 * bound < float(score.abs().max()) <= bound
    else:
        assert float(score.abs().max()) > 3.5 * deviation
    assert torch.equal(score, Hydra(init=init).score(view, seeded(1))["weight"])
    assert not torch.equal(score, Hydra(init=init).score(view, seeded(2))["weight"])
    assert torch.equal(torch.get_rng_state(), state)


def test_random_scores_are_uniform_and_follow_the_generator():
    view, state = MaskView(nn.Linear(400, 600)), torch.get_rng_state()
    score = Random().score(view, seeded(1))["weight"]
    assert torch.equal(score, Random().score(view, seeded(1))["weight"])
    assert not torch.equal(score, Random().score(view, seeded(2))["weight"])
    assert torch.equal(torch.get_rng_state(), state)
    weight = view.weights()["weight"].flatten()
    assert abs(float(torch.corrcoef(torch.stack([score.flatten(), weight]))[0, 1])) < 0.01
    assert (score >= 0).all()


def test_an_unknown_init_is_refused():
    with pytest.raises(SpecError, match=r"pruner\.init: .*kaiming_normal"):
        PRUNERS.make({"kind": "hydra", "init": "orthogonal"}, "pruner")


@pytest.mark.parametrize("structure", [Weight(), Filter(), None])
@pytest.mark.parametrize("budget", [Uniform, Global, ERK])
@pytest.mark.parametrize("method", [Hydra(), Magnitude(), Random()], ids=lambda method: method.kind)
def test_prune_takes_any_network(method, budget, structure):
    net = Unseen()
    view, budget = MaskView(net), budget(sparsity="7/10")
    stored = {name: weight.clone() for name, weight in view.weights().items()}
    scores = method.score(view, seeded())
    prune(view, method, budget, structure, seeded())
    kinds = {name: (structure or Weight()).on(module) for name, (module,) in view.modules.items()}
    shapes = {name: tuple(weight.shape) for name, weight in stored.items()}
    kept = budget.allocate({name: kinds[name].pool(score) for name, score in scores.items()}, shapes)
    assert list(kept) == [f"{layer}.weight" for layer in ("volume", "grouped", "up", "line", "head")]
    for name, count in view.counts().items():
        assert count.kept == kept[name] * count.total // kinds[name].groups(shapes[name])
        assert torch.equal(view.weights()[name], stored[name])
    assert {type(source) for source in view.sources.values()} == {LearnedMask if method.over else FixedMask}
    assert net(X).isfinite().all()


@pytest.mark.parametrize("pruner", [Random(), Hydra(init="kaiming_normal")])
def test_prune_is_reproducible(pruner):
    masks = []
    for probe in (None, seeded(0), seeded(1)):
        view = MaskView(Unseen())
        prune(view, pruner, Uniform(sparsity=0.5), probe=probe)
        masks.append(torch.cat([mask.flatten() for mask in view.masks().values()]))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("pruner", [Magnitude(), *(Hydra(init=init) for init in INITS)])
def test_a_layer_of_zeros_gives_finite_scores(pruner):
    net = Unseen()
    nn.init.zeros_(net.head.weight)
    view = MaskView(net)
    assert all(score.isfinite().all() for score in pruner.score(view, seeded()).values())
    prune(view, pruner, Uniform(sparsity=0.5))
    assert view.counts()["head.weight"].kept == 6


def snapshot(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


@pytest.mark.parametrize("train_norm", [True, False])
@pytest.mark.parametrize("objective", [Natural(), PGD(steps=2)])
def test_fit_over_scores_moves_scores_and_norm_layers_alone(objective, train_norm):
    net = Unseen()
    view = MaskView(net)
    prune(view, Hydra(), Uniform(sparsity=0.5))
    before, masks = snapshot(net), view.masks()
    params = view.train("scores", train_norm=train_norm)
    fit(net, params, Same(), objective, epochs=3, optim=Optim(lr=0.5), threat=ThreatModel(eps=0.1))
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    scores = {f"{layer.removesuffix('.weight')}.parametrizations.weight.0.score" for layer in view.weights()}
    statistics = {f"norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert moved == scores | statistics | ({"norm.weight", "norm.bias"} if train_norm else set())
    assert any(not torch.equal(view.masks()[name], mask) for name, mask in masks.items())
    assert all(int(view.masks()[name].sum()) == int(mask.sum()) for name, mask in masks.items())


def test_fit_over_weights_after_freezing_keeps_what_is_pruned_at_zero():
    net = Unseen()
    view = MaskView(net)
    prune(view, Hydra(), Uniform(sparsity=0.5))
    view.freeze()
    params, masks = view.train("weights"), view.masks()
    Natural()(net, BATCH, None).value.backward()
    for name, (module,) in view.modules.items():
        gradient = module.parametrizations.weight.original.grad
        assert not gradient[~masks[name]].any()
        assert gradient[masks[name]].any()
    net.zero_grad()

    before = {name: weight.clone() for name, weight in view.weights().items()}
    fit(net, params, Same(), Natural(), epochs=3, optim=Optim(lr=0.1, weight_decay=0))
    baked = view.bake()
    for name, mask in masks.items():
        assert torch.equal(view.masks()[name], mask)
        assert torch.equal(view.weights()[name][~mask], before[name][~mask])
        assert not torch.equal(view.weights()[name][mask], before[name][mask])
        assert not baked.get_parameter(name)[~mask].any()
        assert baked.get_parameter(name)[mask].all()
    assert torch.equal(baked.eval()(X), net.eval()(X))
