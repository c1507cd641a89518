"""Magnitude pruning in steps, against sorted lists; and lottery tickets, against trainings one after the other."""

import math

import pytest
import torch

from contracts.material import net
from hydraprune.core.errors import PruningError
from hydraprune.masks.budgets import Global, Table, Uniform
from hydraprune.masks.structures import NOfM
from hydraprune.masks.view import MaskView
from hydraprune.objectives.natural import Natural
from hydraprune.pruners.gradual import Gradual
from hydraprune.pruners.iterative import Iterative
from hydraprune.pruners.lottery_ticket import LotteryTicket
from hydraprune.train import fit
from pruners.staged import SGD, Batches, Seen, best, copies, places, staged, started

STEPS = 8


def watched(pruner, **start):
    seen = []

    def hooks(view, process):
        seen.append(Seen(view, process))
        return [], seen

    view, _, _ = staged(pruner, hooks=hooks, **start)
    return view, seen[0]


def sorted_out(before, after, weights, sparsity):
    """Whether `after` keeps the largest weights of `before` down to `sparsity`."""
    for name, mask in after.items():
        keep = mask.numel() - int(sparsity * mask.numel())
        assert places(mask) == best(weights[name] * before[name], keep)
        assert places(mask) <= places(before[name])


def test_gradual_follows_the_cubic_and_never_goes_back():
    pruner = Gradual(updates=3, until=0.75)
    view, seen = watched(pruner, budget=Uniform(sparsity=0.8))
    before = {name: torch.ones_like(mask) for name, mask in view.masks().items()}
    counts = set()
    for step, after in enumerate(seen.steps, start=1):
        time = min(3, math.floor(3 * step / (0.75 * STEPS))) / 3
        sorted_out(before, after["masks"], after["weights"], 0.8 * (1 - (1 - time) ** 3))
        before = after["masks"]
        counts.add(sum(int(mask.sum()) for mask in before.values()))
    assert len(counts) == 4
    assert all(torch.equal(mask, before[name]) for name, mask in view.masks().items())


def test_iterative_removes_the_same_share_of_what_remains_in_each_round():
    _, seen = watched(Iterative(rounds=2), budget=Uniform(sparsity=0.75))
    fresh = MaskView(net()).weights()
    first = seen.steps[0]["masks"]
    sorted_out({name: torch.ones_like(mask) for name, mask in first.items()}, first, fresh, 0.5)
    for number, after in enumerate(seen.steps, start=1):
        if number >= STEPS // 2:
            sorted_out(first, after["masks"], seen.steps[STEPS // 2 - 1]["weights"], 0.75)
        else:
            assert all(torch.equal(mask, first[name]) for name, mask in after["masks"].items())


@pytest.mark.parametrize("pruner", [Gradual(), Iterative(), LotteryTicket()])
def test_without_epochs_it_is_magnitude_pruning(pruner):
    view, process = started(pruner, budget=Global(sparsity=0.6))
    process.finish()
    flat = torch.cat([weight.flatten() for weight in MaskView(net()).weights().values()])
    kept = torch.cat([mask.flatten() for mask in view.masks().values()])
    assert places(kept) == best(flat, len(flat) - int(0.6 * len(flat)))


def test_a_pattern_starts_dense_too():
    view, process = started(Gradual(), budget=None, structure=NOfM())
    assert view.count().kept == view.count().total
    process.finish()
    assert view.counts()["6.weight"].kept == view.counts()["6.weight"].total // 2


def test_a_table_of_sparsities_cannot_grow():
    with pytest.raises(PruningError, match="budget 'table' has several"):
        started(Gradual(), budget=Table(sparsity=0.5, layers={"6.weight": 0.9}))


@pytest.mark.parametrize("rewind", [0.0, 0.5])
def test_a_lottery_ticket_is_train_prune_rewind_and_again(rewind):
    """Bit for bit, norm statistics included: three trainings of two epochs, each by a call of its own."""
    ticket = LotteryTicket(rounds=2, rewind=rewind)
    view, _, _ = staged(ticket, epochs=6, budget=Uniform(sparsity=0.75))

    model = net()
    plain, _ = started(Gradual(), model=model)  # masks that keep everything

    def train(epochs):
        fit(model, plain.train("weights"), Batches(), Natural(), epochs=epochs, optim=SGD)

    train(int(2 * rewind))
    early = copies(model.state_dict())
    model.load_state_dict(net_with_masks().state_dict())
    train(2)
    for sparsity in (0.5, 0.75):
        weights, before = plain.weights(), plain.masks()
        masks = {}
        for name, mask in before.items():
            keep = best(weights[name] * mask, mask.numel() - int(sparsity * mask.numel()))
            masks[name] = torch.tensor([p in keep for p in range(mask.numel())]).view(mask.shape)
        model.load_state_dict(early)
        for name, mask in plain.masks().items():
            mask.copy_(masks[name])
        train(2)
    assert all(torch.equal(value, view.model.state_dict()[name]) for name, value in model.state_dict().items())
    assert not torch.equal(view.weights()["0.weight"], early["0.parametrizations.weight.original"])


def net_with_masks():
    view, _ = started(Gradual())
    return view.model
