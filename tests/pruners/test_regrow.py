"""Dropping and growing, against sorted lists; and how Flying Bird+ follows what was measured."""

import math
from typing import ClassVar

import pytest
import torch

from hydraprune.core.objective import Clock
from hydraprune.masks.budgets import ERK, Uniform
from hydraprune.masks.structures import Filter, NOfM
from hydraprune.masks.topk import top_mask
from hydraprune.objectives.natural import Natural
from hydraprune.pruners.flyingbird import FlyingBird, FlyingBirdPlus
from hydraprune.pruners.rigl import RigL
from hydraprune.pruners.set import SET
from hydraprune.train import Hook, Optim, fit
from pruners.staged import SGD, Batches, Seen, best, places, staged, started

SPARSE = Uniform(sparsity=0.75)


def around(pruner, **start):
    """What is seen just before and just after the process acts, and the view at the end."""
    seen = []

    def hooks(view, process):
        seen.extend([Seen(view, process), Seen(view, process)])
        return seen[:1], seen[1:]

    view, process, _ = staged(pruner, hooks=hooks, **start)
    return seen[0].gradients, seen[1].gradients, view, process


@pytest.mark.parametrize("optim", [SGD, Optim(kind="adam", lr=0.01)])
def test_rigl_drops_the_smallest_and_grows_where_the_gradient_is_largest(optim):
    before, after, _, _ = around(RigL(drop=0.4, updates=6), budget=SPARSE, optim=optim)
    moved = 0
    for step, (old, new) in enumerate(zip(before, after, strict=True)):
        due = 1 <= step <= 6  # one update in each of the first 6 of 8 steps
        share = 0.4 / 2 * (1 + math.cos(math.pi * step / 6)) if due else 0
        for number, name in enumerate(old["masks"]):
            active = places(old["masks"][name])
            gone = math.ceil(share * len(active))
            stay = best(old["weights"][name], len(active) - gone, sorted(active))
            gradient = old["gradients"][name]
            grown = best(gradient, gone, sorted(set(range(gradient.numel())) - stay))
            mask = new["masks"][name].flatten()
            assert places(mask) == stay | grown
            born = sorted(grown - active)
            moved += len(born)
            assert new["weights"][name].flatten()[born].abs().sum() == 0
            for moment in new["moments"][number].values():
                if moment.dim():
                    assert moment.flatten()[born].abs().sum() == 0
                    assert step == 0 or moment.flatten()[sorted(stay)].abs().sum() > 0
            assert torch.equal(new["gradients"][name], gradient * new["masks"][name])
            assert torch.equal((old["weights"][name] * new["masks"][name]).flatten()[sorted(stay)],
                               new["weights"][name].flatten()[sorted(stay)])  # fmt: skip
    assert moved > 50
    assert any(gradient[~old["masks"]["3.weight"]].abs().sum() > 0
               for old in before for gradient in [old["gradients"]["3.weight"]])  # fmt: skip


def test_set_grows_at_random_the_same_in_every_run_and_others_with_another_seed():
    before, after, view, _ = around(SET(updates=6), budget=SPARSE)
    for old, new in zip(before[1:7], after[1:7], strict=True):
        for name in old["masks"]:
            active, now = places(old["masks"][name]), places(new["masks"][name])
            stay = best(old["weights"][name], len(active) - math.ceil(0.3 * len(active)), sorted(active))
            assert stay < now
            assert len(now) == len(active)
    again, other = (around(SET(updates=6), budget=SPARSE, seed=seed)[2] for seed in (0, 1))
    for name, mask in view.masks().items():
        assert torch.equal(mask, again.masks()[name])
        assert not torch.equal(mask, other.masks()[name])


def test_random_growth_reaches_everywhere_alike():
    """Over many updates every connection that was free has about the same chance."""
    before, after, _, _ = around(SET(updates=200, until=1), budget=SPARSE, epochs=100)
    masks = [(old["masks"]["6.weight"], new["masks"]["6.weight"]) for old, new in zip(before, after, strict=True)]
    grown = sum((new & ~old).float() for old, new in masks)
    free = sum((~old).float() for old, _ in masks)
    assert grown.sum() > 1000
    rates = (grown / free)[free > 50]
    assert len(rates) > 200
    assert rates.std() < 0.5 * rates.mean()


@pytest.mark.parametrize(("structure", "budget"), [(Filter(), SPARSE), (NOfM(), None)])
def test_groups_move_as_one(structure, budget):
    before, after, view, _ = around(RigL(drop=0.5, updates=8), budget=budget, structure=structure)
    start = {name: int(mask.sum()) for name, mask in before[0]["masks"].items()}
    moved = 0
    for old, new in zip(before, after, strict=True):
        for name, mask in new["masks"].items():
            moved += int((mask & ~old["masks"][name]).sum())
            assert int(mask.sum()) == start[name]
            on = structure.on(view.modules[name][0])
            again, _ = top_mask(on.pool(mask.float()), on.decided(mask.shape) or int((on.pool(mask.float()) > 0).sum()))
            assert torch.equal(on.expand(again, tuple(mask.shape)), mask), f"{name} is no {structure.kind}"
    assert moved > 0


def test_what_has_no_connection_is_exactly_zero_once_it_was_dropped():
    _, after, view, _ = around(SET(updates=8, until=1), budget=SPARSE, optim=Optim(lr=0.1, weight_decay=0.01))
    for name, weight in view.weights().items():
        assert weight[~after[-1]["masks"][name]].abs().sum() == 0


def test_flying_bird_replaces_half_at_first_and_hardly_any_at_the_end():
    bird = FlyingBird()
    assert [bird.replaced(time) for time in (0, 0.5, 1)] == pytest.approx([0.5, 0.2525, 0.005])
    before, after, view, _ = around(FlyingBird(updates=4), budget=ERK(sparsity=0.8))
    assert all(old["masks"].keys() == new["masks"].keys() for old, new in zip(before, after, strict=True))
    assert view.count().kept == view.count().total - int(0.8 * view.count().total)


def clock(step, epochs=20):
    return Clock(step, 2, epochs)


def measured(process, values):
    """Epochs with (robust accuracy in training, in validation), the latter added after the hook has run."""
    for epoch, (train, validation) in enumerate(values, start=1):
        metrics = {"robust_accuracy": train}
        process.on_epoch(epoch, process.view.model, metrics)
        metrics["validation_robust_accuracy"] = validation


STEADY = [(0.5, 0.5)] * 5
OVERFITS = [(0.5, 0.5), (0.6, 0.5), (0.7, 0.5), (0.7, 0.5), (0.7, 0.5)]  # the gap rises in 2 of 4
FALLS = [(0.6, 0.6), (0.5, 0.5), (0.4, 0.4), (0.4, 0.4), (0.4, 0.4)]
BOTH = [(0.5, 0.5), (0.6, 0.4), (0.7, 0.3), (0.8, 0.2), (0.9, 0.1)]
ONCE = [(0.5, 0.5), (0.9, 0.1), (0.9, 0.1), (0.9, 0.1), (0.9, 0.1)]


@pytest.mark.parametrize(
    ("values", "less", "more"),
    [(STEADY, 0, 0), (OVERFITS, 1, 0), (FALLS, 0, 1), (BOTH, 1, 1), (ONCE, 0, 0), (OVERFITS[:4], 0, 0)],
)
def test_flying_bird_plus_shrinks_when_the_gap_widens_and_grows_when_validation_falls(values, less, more):
    bird = FlyingBirdPlus()
    _, process = started(bird, budget=SPARSE)
    measured(process, values)
    share = bird.replaced(24 / (0.9 * 40))

    def wanted(step):
        process._read()  # as the next step does
        process.clock = clock(step)
        return bird.wanted(process)

    for name, kept in process.groups().items():
        expected = kept - less * math.ceil(0.4 * share * kept) + more * math.ceil(0.05 * kept)
        assert wanted(24)[name] == expected
    assert wanted(18) == process.keep, "in the first half the count stays"
    assert wanted(36) == process.keep, "the last update returns to the budget"


def test_flying_bird_plus_remembers_what_it_saw():
    _, process = started(FlyingBirdPlus(), budget=SPARSE)
    measured(process, BOTH)
    _, resumed = started(FlyingBirdPlus(), budget=SPARSE)
    resumed.restore(process.state())
    assert torch.equal(resumed.memory["seen"], process.memory["seen"])
    assert resumed.memory["seen"].isfinite().all()
    process.clock = resumed.clock = clock(24)
    assert resumed.pruner.wanted(resumed) == process.pruner.wanted(process) != process.keep


@pytest.mark.parametrize("values", [OVERFITS, FALLS])
def test_flying_bird_plus_moves_its_count_and_ends_with_that_of_the_budget(values):
    class Measuring(Hook):
        """Validation, which comes after the process."""

        counts: ClassVar[list[int]] = []

        def on_epoch(self, epoch, model, metrics):
            metrics["accuracy"], metrics["validation_accuracy"] = values[min(epoch - 1, 4) if epoch < 8 else 4]

        def on_step(self, clock, images, loss):
            self.counts.append(view.count().kept)

    Measuring.counts.clear()
    view, process = started(FlyingBirdPlus(updates=100, drop=0.3), budget=SPARSE)
    budget = view.count().kept
    fit(view.model, view.train("weights"), Batches(), Natural(), epochs=10, optim=SGD, hooks=[process, Measuring()])
    moved = min(Measuring.counts) < budget if values is OVERFITS else max(Measuring.counts) > budget
    assert moved
    assert Measuring.counts[-1] == budget
    process.finish()
    assert view.count().kept == budget


@pytest.mark.parametrize("off", [0.5, 1.5])
def test_flying_bird_plus_that_is_cut_short_still_ends_with_the_budget(off):
    view, process = started(FlyingBirdPlus(), budget=SPARSE)
    budget = view.count().kept
    process.move(process.selection.masks(view.weights(), 1 - 0.25 * off))
    assert view.count().kept != budget
    process.finish()
    assert view.count().kept == budget
