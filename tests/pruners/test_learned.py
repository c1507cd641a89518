"""Methods that learn over scores: HARP's rates, random networks that stay random, and HYDRA that prunes gradually."""

import math

import pytest
import torch
from torch import nn

from contracts.material import batch, net
from hydraprune.core.errors import PruningError
from hydraprune.core.objective import Clock
from hydraprune.masks.budgets import ERK, FLOPs, Uniform
from hydraprune.masks.structures import Filter, NOfM
from hydraprune.masks.view import MaskView
from hydraprune.objectives.natural import Natural
from hydraprune.pruners.edge_popup import EdgePopup
from hydraprune.pruners.harp import HARP
from hydraprune.pruners.hydra import Hydra
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.pruning import prune
from hydraprune.train import Hook, Optim, fit


class Same:
    """The same batch, twice per epoch."""

    def __len__(self) -> int:
        return 2

    def epoch(self, number: int):
        return iter([batch()] * 2)


def trained(pruner, budget, epochs=6, structure=None, lr=0.1, hooks=(), model=None):
    view = MaskView(model or net())
    process = prune(view, pruner, budget, structure)
    every = [process, *hooks]
    optim = Optim(lr=lr, schedule="constant")
    fit(view.model, view.train("scores"), Same(), Natural(), epochs=epochs, optim=optim, hooks=every)
    return view, process


def test_the_gradient_of_a_rate_is_that_of_its_layers_mask_and_of_the_penalty():
    model, target, gamma = net(), 0.2, 3.0
    view = MaskView(model)
    process = prune(view, HARP(start=0.5, gamma=gamma), Uniform(sparsity=1 - target))
    view.train("scores")
    total, kept = view.count().total, process.memory["total"].item()
    images = batch()
    effective = {name: module.weight for name, (module,) in view.modules.items()}
    for tensor in effective.values():
        tensor.retain_grad()
    with torch.nn.utils.parametrize.cached():
        for name, (module,) in view.modules.items():
            effective[name] = module.weight
            effective[name].retain_grad()
        nn.functional.cross_entropy(model(images.x), images.y).backward()
    for name, source in view.sources.items():
        weight, slope = view.weights()[name], effective[name].grad
        least, inner = 0.1 * kept / total, float(source.rate.detach().sigmoid())
        assert float(source.share().detach()) == pytest.approx(least + (1 - least) * inner)
        chain = (1 - least) * inner * (1 - inner)
        assert float(source.rate.grad) == pytest.approx(chain * float((slope * weight).sum()), rel=1e-4)
        torch.testing.assert_close(source.score.grad, slope * weight * source.score.sign())
        source.rate.grad = None
    process.on_start(6, 2, 0)
    process.memory["growth"].fill_(2)
    process.on_gradient(Clock(0, 2, 6), None)
    share = sum(source.groups * float(source.share().detach()) for source in view.sources.values()) / total
    assert share > 2 * target
    for source in view.sources.values():
        inner = float(source.rate.detach().sigmoid())
        chain = (1 - 0.1 * kept / total) * inner * (1 - inner)
        expected = 2 * gamma * (source.groups / total) / (kept / total) * chain
        assert float(source.rate.grad) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("budget", [Uniform(sparsity=0.9), ERK(sparsity=0.97)])
def test_harp_meets_its_target_by_itself_and_then_exactly(budget):
    view, process = trained(HARP(gamma=0.5, start=0.3), budget, epochs=30, lr=0.3)
    share = sum(source.groups * float(source.share().detach()) for source in view.sources.values()) / view.count().total
    assert share <= 1.05 * (1 - budget.sparsity)
    rates = {name: float(source.share().detach()) for name, source in view.sources.items()}
    process.finish()
    counts = view.counts()
    assert view.count().kept == process.memory["total"]
    assert all(count.kept >= 1 for count in counts.values())
    # One factor takes every share to what the layer keeps.
    factors = [(c.kept / c.total) / rates[n] for n, c in counts.items() if 5 < c.kept < c.total]
    assert max(factors) < 1.2 * min(factors)
    # Layers differ from what the budget alone would give them.
    alone = MaskView(net())
    prune(alone, Hydra(), budget)
    assert counts != alone.counts()


USES = {"0.weight": 16, "3.weight": 4, "6.weight": 1}
"""Positions of each layer of the small net: 4 x 4 and 2 x 2 outputs, and one."""


def sparing(sparsity, structure=None, **settings):
    """The small net under HARP with a budget of multiplications."""
    view = MaskView(net())
    probe = Probe(torch.Generator(), Natural(), None, lambda: [batch()])
    return view, prune(view, HARP(**settings), FLOPs(sparsity=sparsity), structure, probe)


def test_the_penalty_counts_what_the_budget_counts():
    view, process = sparing(0.8, start=0.5, gamma=2.0)
    view.train("scores")
    macs = {name: USES[name] * weight.numel() for name, weight in view.weights().items()}
    allowed = 0.2 * sum(macs.values())
    shares = {name: float(source.share().detach()) for name, source in view.sources.items()}
    spent = sum(macs[name] * share for name, share in shares.items())
    assert spent == pytest.approx(0.5 * sum(macs.values()), rel=0.03), "it starts at the share asked for"
    process.on_start(6, 2, 0)
    assert float(process.pruner.excess(process).detach()) == pytest.approx(spent / allowed - 1, rel=1e-2)
    process.on_gradient(Clock(0, 2, 6), None)
    for name, source in view.sources.items():
        inner = float(source.rate.detach().sigmoid())
        assert source.least == pytest.approx(0.1 * 0.2, rel=1e-2)
        chain = (1 - source.least) * inner * (1 - inner)
        assert float(source.rate.grad) == pytest.approx(2 * macs[name] / allowed * chain, rel=1e-2)


@pytest.mark.parametrize("structure", [None, Filter()])
def test_harp_meets_a_target_in_multiplications(structure):
    view, process = sparing(0.8, structure, start=0.6, gamma=0.5)
    macs = {name: USES[name] * weight.numel() for name, weight in view.weights().items()}
    optim = Optim(lr=0.3, schedule="constant")
    fit(view.model, view.train("scores"), Same(), Natural(), epochs=40, optim=optim, hooks=[process])
    rates = {name: float(source.share().detach()) for name, source in view.sources.items()}
    assert sum(macs[name] * rate for name, rate in rates.items()) <= 1.05 * 0.2 * sum(macs.values())
    scores = {name: source.score.detach().abs() for name, source in view.sources.items()}
    process.finish()
    kept = {name: int(mask.sum()) for name, mask in view.masks().items()}
    spent, dearest = sum(USES[name] * count for name, count in kept.items()), 9 * 16 if structure is None else 54 * 4
    assert 0.2 * sum(macs.values()) - dearest < spent <= 0.2 * sum(macs.values()) + 1
    if structure is None:
        factors = [kept[name] / mask.numel() / rates[name] for name, mask in view.masks().items()]
        assert max(factors) < 1.1 * min(factors), "one factor takes every share to what the layer keeps"
        assert all(scores[n][m].min() >= scores[n][~m].max() for n, m in view.masks().items())


def test_what_a_layer_keeps_are_its_largest_scores():
    view, process = trained(HARP(), Uniform(sparsity=0.8))
    scores = {name: source.score.detach().abs() for name, source in view.sources.items()}
    process.finish()
    for name, mask in view.masks().items():
        assert scores[name][mask].min() >= scores[name][~mask].max()


def test_shares_are_scaled_by_one_factor_where_they_can():
    """Against a factor that is raised little by little until the total is there."""
    view = MaskView(net())
    process = prune(view, HARP(start=0.9), Uniform(sparsity=0.4))
    for source, share in zip(view.sources.values(), (0.97, 0.07, 0.4), strict=True):
        inner = (share - source.least) / (1 - source.least)
        source.rate.data.fill_(math.log(inner / (1 - inner)))
    shares = [(float(source.share().detach()), source.groups) for source in view.sources.values()]
    factor, kept = 0.0, []
    while sum(kept) < process.memory["total"]:
        factor += 1e-4
        kept = [max(1, min(groups, int(factor * share * groups))) for share, groups in shares]
    process.finish()
    found = [count.kept for count in view.counts().values()]
    assert sum(found) == process.memory["total"]
    assert all(abs(a - b) <= 1 for a, b in zip(found, kept, strict=True))
    assert found[0] == shares[0][1]


def test_the_penalty_grows_with_every_epoch_until_the_target_is_met():
    class Growth(Hook):
        seen = []

        def on_epoch(self, epoch, model, metrics):
            self.seen.append((int(process.memory["growth"]), metrics["excess"]))

    view = MaskView(net())
    process = prune(view, HARP(start=0.4, gamma=0.05), Uniform(sparsity=0.8))
    growth = Growth()
    fit(
        view.model, view.train("scores"), Same(), Natural(), epochs=40, hooks=[process, growth],
        optim=Optim(lr=0.5, schedule="constant"),
    )  # fmt: skip
    met = next(i for i, (_, excess) in enumerate(growth.seen) if round(excess, 4) == 0)
    assert 3 < met < 38
    assert [number for number, _ in growth.seen] == [*range(2, met + 2), *[met + 1] * (40 - met)]


def test_harp_says_what_it_cannot_share_out():
    reason = r"'harp' learns .*, and structure 'n:m' says that itself, .*use budget uniform and structure weight"
    with pytest.raises(PruningError, match=reason):
        prune(MaskView(net()), HARP(), None, NOfM())


@pytest.mark.parametrize("kind", ["signed_constant", "kaiming_normal"])
def test_edge_popup_draws_weights_that_stay(kind):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 10))
    old = {name: weight.clone() for name, weight in MaskView(model).weights().items()}
    view, _ = trained(EdgePopup(weights=kind), Uniform(sparsity=0.5), epochs=2, model=model)
    for name, weight in view.weights().items():
        deviation = math.sqrt(2 / weight.shape[1])
        if kind == "signed_constant":
            assert torch.equal(weight.abs(), torch.full_like(weight, deviation))
            assert 0.4 < float((weight > 0).float().mean()) < 0.6
        assert float(weight.std()) == pytest.approx(deviation, rel=0.05)
        assert float((weight.sign() == old[name].sign()).float().mean()) < 0.6
    after = {name: weight.clone() for name, weight in view.weights().items()}
    fresh = MaskView(model)
    prune(fresh, EdgePopup(weights=kind), Uniform(sparsity=0.5))
    assert all(torch.equal(weight, after[name]) for name, weight in fresh.weights().items())
    for name, source in fresh.sources.items():
        bound = 1 / math.sqrt(fresh.weights()[name].shape[1])
        score = source.score.detach()
        assert 0.98 * bound < float(score.abs().max()) <= bound
        assert float(score.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)


@pytest.mark.parametrize("structure", [None, Filter()])
def test_gradual_hydra_follows_the_cubic(structure):
    counts = []

    class Count(Hook):
        def on_step(self, clock, images, loss):
            counts.append([source.keep for source in view.sources.values()])

    view = MaskView(net())
    process = prune(view, Hydra(gradual=2.5), ERK(sparsity=0.75), structure)
    final = [source.keep for source in view.sources.values()]
    sizes = [source.structure.groups(tuple(source.score.shape)) for source in view.sources.values()]
    moving = view.train("scores")
    fit(view.model, moving, Same(), Natural(), epochs=4, hooks=[process, Count()], optim=Optim(lr=0.1))
    for step, kept in enumerate(counts, start=1):
        t = min(1.0, step / 5)
        for keep, least, size in zip(kept, final, sizes, strict=True):
            assert keep == least + math.floor((size - least) * (1 - t) ** 3)
    assert counts[0] != final
    assert counts[4] == counts[-1] == final


def test_gradual_hydra_ends_at_the_budget_however_short_the_stage():
    view, process = trained(Hydra(gradual=50), Uniform(sparsity=0.9), epochs=1)
    assert view.count().kept > 0.8 * view.count().total
    process.finish()
    assert all(count.kept == count.total - int(0.9 * count.total) for count in view.counts().values())
