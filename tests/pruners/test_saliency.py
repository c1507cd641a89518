"""One-shot scores against slow computations of their formulas: one weight at a time, or with whole Hessians."""

import copy

import pytest
import torch
from torch import nn

from hydraprune.core.errors import PruningError
from hydraprune.core.objective import Batch
from hydraprune.core.threat import ThreatModel
from hydraprune.masks.budgets import Global, Uniform
from hydraprune.masks.view import MaskView
from hydraprune.objectives.natural import Natural
from hydraprune.objectives.pgd import PGD
from hydraprune.pruners import PRUNERS
from hydraprune.pruners.grasp import GraSP
from hydraprune.pruners.lamp import LAMPScores
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.pruning import prune
from hydraprune.pruners.selection import masked_weights
from hydraprune.pruners.snip import SNIP
from hydraprune.pruners.synflow import SynFlow
from hydraprune.pruners.taylor import Taylor


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 2, stride=2), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3, bias=False)
    )


def batch(seed: int) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    return Batch(torch.rand(9, 1, 4, 4, generator=rng), torch.arange(9) % 3)


BATCHES = [batch(seed) for seed in range(3)]


def probe(objective=None, threat=None) -> Probe:
    return Probe(torch.Generator().manual_seed(0), objective or Natural(), threat, lambda: BATCHES)


def cut(net: nn.Module, images: Batch) -> dict[str, torch.Tensor]:
    """d loss / d c for the weight c * w of every connection at c = 1: a quotient of two losses for each."""
    net = copy.deepcopy(net).double().train()

    def loss() -> float:
        p = net(images.x.double()).softmax(1)
        return float(-p[range(len(images.y)), images.y].log().mean())

    felt = {}
    with torch.no_grad():
        for name in ("0.weight", "4.weight"):
            flat = net.get_parameter(name).view(-1)
            felt[name] = torch.zeros(flat.numel())
            for i, w in enumerate(flat.tolist()):
                sides = []
                for c in (1 + 1e-5, 1 - 1e-5):
                    flat[i] = c * w
                    sides.append(loss())
                flat[i] = w
                felt[name][i] = (sides[0] - sides[1]) / 2e-5
    return felt


@pytest.mark.parametrize("batches", [1, 3])
def test_snip_is_what_the_loss_feels(batches):
    scores = SNIP(batches=batches).score(MaskView(small()), probe())
    each = [cut(small(), images) for images in BATCHES[:batches]]
    for name, score in scores.items():
        expected = sum(felt[name] for felt in each) / batches
        torch.testing.assert_close(score.flatten(), expected, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize(("squared", "power"), [(True, 2), (False, 1)])
def test_taylor_takes_the_power_in_each_batch(squared, power):
    scores = Taylor(batches=2, squared=squared).score(MaskView(small()), probe())
    each = [cut(small(), images) for images in BATCHES[:2]]
    for name, score in scores.items():
        expected = sum(felt[name].abs() ** power for felt in each) / 2
        torch.testing.assert_close(score.flatten(), expected, atol=1e-7, rtol=2e-3)


@pytest.mark.parametrize("temperature", [1.0, 200.0])
def test_grasp_is_the_whole_hessian_times_the_gradient(temperature):
    net = small().double()
    names = ("0.weight", "4.weight")
    stored = [net.get_parameter(name).detach() for name in names]

    def loss(*weights):
        logits = torch.func.functional_call(net, dict(zip(names, weights, strict=True)), BATCHES[0].x.double())
        return nn.functional.cross_entropy(logits / temperature, BATCHES[0].y)

    rows = torch.autograd.functional.hessian(loss, tuple(stored))
    sizes = [w.numel() for w in stored]
    hessian = torch.cat([torch.cat([b.reshape(n, -1) for b in row], 1) for n, row in zip(sizes, rows, strict=True)])
    gradient = torch.cat([g.flatten() for g in torch.autograd.functional.jacobian(loss, tuple(stored))])
    removed_first = -torch.cat([w.flatten() for w in stored]) * (hessian @ gradient)

    scores = GraSP(temperature=temperature).score(MaskView(small()), probe())
    ours = torch.cat([score.flatten() for score in scores.values()])
    expected = removed_first.max() - removed_first
    torch.testing.assert_close(ours, expected, atol=float(expected.max()) * 1e-4, rtol=1e-3)
    # The network keeps those with the lowest.
    view = MaskView(small())
    prune(view, GraSP(temperature=temperature), Global(sparsity=0.5, floor=0), probe=probe())
    kept = torch.cat([mask.flatten() for mask in view.masks().values()])
    assert removed_first[kept].max() < removed_first[~kept].min()


@pytest.mark.parametrize("sparsity", [0.3, 0.8])
def test_synflow_prunes_round_by_round_where_little_flows(sparsity):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4))
    norm = net[2]
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.normal_()
        norm.running_var.uniform_(0.5, 2)
        net[4].bias.normal_()
    first, last = net[1].weight.detach().abs().double(), net[4].weight.detach().abs().double()
    slope = norm.weight.detach().abs().double() / (norm.running_var.double() + norm.eps).sqrt()
    images = Batch(torch.rand(2, 1, 2, 3), torch.tensor([0, 1]))

    view = MaskView(net)
    seen = Probe(torch.Generator(), None, None, lambda: [images])
    prune(view, SynFlow(rounds=7), Global(sparsity=sparsity, floor=0), probe=seen)

    # What enters unit j is the sum of its weights; what leaves it reaches the output by the sum of its next weights.
    for i in range(1, 8):
        value = slope * first.sum(1) + norm.bias.detach().abs().double()
        scores = torch.cat([(first * (slope * last.sum(0))[:, None]).flatten(), (last * value).flatten()])
        share = sparsity if i == 7 else 1 - (1 - sparsity) ** (i / 7)
        gone = scores.argsort()[: int(share * len(scores))]
        mask = torch.ones(len(scores), dtype=torch.bool)
        mask[gone] = False
        first, last = first * mask[:30].view(5, 6), last * mask[30:].view(4, 5)
    assert torch.equal(view.masks()["1.weight"], first != 0)
    assert torch.equal(view.masks()["4.weight"], last != 0)


def test_synflow_cuts_no_network_in_two_where_magnitudes_would():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), *[nn.Linear(16, 16, bias=False) for _ in range(5)])
    with torch.no_grad():
        net[3].weight.mul_(1e-3)
    counts = {}
    for pruner in (SynFlow(), PRUNERS.get("magnitude")()):
        view = MaskView(copy.deepcopy(net))
        prune(view, pruner, Global(sparsity=0.97, floor=0), probe=probe())
        counts[pruner.kind] = view.counts()["3.weight"].kept
    assert counts["magnitude"] == 0
    assert counts["synflow"] > 0


def test_lamp_is_the_share_of_all_that_are_not_smaller():
    net = small()
    for name, score in LAMPScores().score(MaskView(net), probe()).items():
        weights = net.get_parameter(name).detach().flatten().double().tolist()
        for w, found in zip(weights, score.flatten().tolist(), strict=True):
            assert found == pytest.approx(w * w / sum(v * v for v in weights if abs(v) >= abs(w)))
    nn.init.zeros_(net[4].weight)
    assert all(score.isfinite().all() for score in LAMPScores().score(MaskView(net), probe()).values())


@pytest.mark.parametrize("method", ["snip", "grasp", "taylor"])
def test_the_attack_of_the_stage_enters(method):
    pruner = PRUNERS.get(method)()
    clean, robust = (
        pruner.score(MaskView(small()), probe(PGD(steps=2), ThreatModel(eps=eps)))["4.weight"] for eps in (0, 0.3)
    )
    assert not torch.allclose(clean, robust, rtol=0.01)


@pytest.mark.parametrize("method", ["snip", "grasp", "taylor", "synflow"])
def test_without_images_it_says_what_to_give(method):
    with pytest.raises(PruningError, match="give `prune` a Probe with"):
        prune(MaskView(small()), PRUNERS.get(method)(), Uniform(sparsity=0.5))


@pytest.mark.parametrize("method", ["snip", "grasp", "taylor", "synflow", "lamp", "magnitude", "hydra"])
def test_what_was_pruned_before_stays_pruned(method):
    """Even where weights are still stored below the mask."""
    view, pruner = MaskView(small()), PRUNERS.get(method)()
    prune(view, PRUNERS.get("random")(), Uniform(sparsity=0.5), probe=probe())
    before = view.masks()
    assert all(view.weights()[name][~mask].any() for name, mask in before.items())
    prune(view, pruner, Uniform(sparsity=0.75), probe=probe())
    for name, mask in view.masks().items():
        assert not (mask & ~before[name]).any()
        assert int(mask.sum()) == mask.numel() - int(0.75 * mask.numel())
        assert not masked_weights(view)[name][~mask].any()
