"""Surgery, deep rewiring, straight-through magnitude, early birds, training from scratch, filters by their L1 norm."""

import pytest
import torch

from contracts.material import batch, net
from hydraprune.core.objective import Clock
from hydraprune.masks.budgets import Global, Uniform
from hydraprune.masks.structures import Filter
from hydraprune.masks.view import MaskView
from hydraprune.pruners.deep_r import DeepR, fill, totals
from hydraprune.pruners.dns import DNS
from hydraprune.pruners.early_bird import EarlyBird, distance
from hydraprune.pruners.magnitude import Magnitude
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.pruning import prune
from hydraprune.pruners.scratch import Scratch
from hydraprune.pruners.ste_magnitude import STEMagnitude
from hydraprune.train import Optim
from pruners.staged import SGD, Seen, best, copies, places, staged, started

LIVELY = Optim(lr=0.5, schedule="constant")


def watched(pruner, **start):
    """What is seen before and after the process acts."""
    seen = []

    def hooks(view, process):
        seen.extend([Seen(view, process), Seen(view, process)])
        return seen[:1], seen[1:]

    view, process, _ = staged(pruner, hooks=hooks, **start)
    return *seen, view, process


def test_surgery_cuts_below_one_threshold_and_splices_above_a_higher_one():
    _, after, _, _ = watched(DNS(updates=100), epochs=10, optim=LIVELY)
    spliced = between = 0
    for old, new in zip(after.gradients[:15], after.steps[:15], strict=True):  # 15 of 20 steps are before 75 %
        for name, mask in new["masks"].items():
            weight, had = new["weights"][name].abs(), old["masks"][name]
            count = int(mask.sum())
            # The thresholds that the exact count asks for, by trying each weight as the last that stays.
            lifted = sorted((weight * torch.where(had, 1.1, 0.9)).flatten().tolist(), reverse=True)
            low, high = lifted[count - 1] / 1.1, lifted[count - 1] / 0.9
            expected = torch.where(
                weight >= high * (1 - 1e-6), True, torch.where(weight < low * (1 - 1e-6), False, had)
            )
            assert torch.equal(mask, expected)
            spliced += int((mask & ~had).sum())
            between += int(((weight > low) & (weight < high)).sum())
    assert spliced > 5
    assert between > 50
    assert all(torch.equal(m, new["masks"][n]) for new in after.steps[15:] for n, m in after.steps[14]["masks"].items())


def test_surgery_trains_what_is_cut_and_grows_rarer():
    before, _, _, _ = watched(DNS(updates=100, until=1))
    first, last = before.gradients[0], before.gradients[-1]
    cut = ~first["masks"]["3.weight"]
    assert (first["weights"]["3.weight"][cut] - last["weights"]["3.weight"][cut]).abs().sum() > 0
    counts = [DNS(updates=10_000, until=1).done(Clock(step, 1, 1000)) for step in (0, 10, 990, 1000)]
    assert counts[3] == 10_000
    assert counts[3] - counts[2] == pytest.approx((counts[1] - counts[0]) / 2, rel=0.03)


def test_straight_through_magnitude_is_the_largest_weights_at_every_moment():
    before, after, view, _ = watched(STEMagnitude(), optim=LIVELY)
    for new in after.steps:
        for name, weight in new["weights"].items():
            assert places(new["masks"][name]) == best(weight, weight.numel() - int(0.5 * weight.numel()))
    moved = before.gradients[0]["masks"]["3.weight"] ^ view.masks()["3.weight"]
    assert moved.sum() > 0


def test_deep_rewiring_kills_what_changes_sign_and_bears_as_many_at_random():
    deep = DeepR(l1=0.05)
    before, after, view, process = watched(deep, budget=Uniform(sparsity=0.75), epochs=10)
    signs = {name: weight >= 0 for name, weight in MaskView(net()).weights().items()}
    deaths, walks, sides = 0, [], []
    for early, late, new in zip(before.gradients, after.gradients, after.steps, strict=True):
        for name, mask in new["masks"].items():
            had, weight, then = early["masks"][name], early["weights"][name], new["weights"][name]
            pull = (late["gradients"][name] - early["gradients"][name]) / deep.l1
            assert pull[~had].abs().sum() == 0
            newborn = had & (weight == 0)
            signs[name] = torch.where(newborn, pull > 0, signs[name])  # the walk hardly ever hides the sign
            walks.append(torch.where(signs[name], pull, -pull)[had & ~newborn])
            assert int(mask.sum()) == int(had.sum())
            assert then[~had].abs().sum() == 0, "a newborn weighs nothing"
            assert then[~mask].abs().sum() == 0
            lives = had & mask & (then != 0)
            sides.append((then[lives] > 0) == signs[name][lives])
            deaths += int((had & ~mask).sum())
    every = torch.cat(walks)
    assert len(every) > 1000
    assert every.mean() == pytest.approx(1, abs=0.05)
    assert every.std() == pytest.approx(1 / 3, abs=0.03)
    assert torch.cat(sides).float().mean() > 0.98
    assert deaths > 50
    for name, weight in view.weights().items():
        lives = weight != 0
        assert torch.equal(weight[lives] > 0, process.memory[f"positive/{name}"][lives])


def test_the_pull_goes_to_connections_alone_and_what_comes_or_goes_has_no_momentum():
    """Without noise the walk is `l1 * sign`, written out for every weight."""
    deep = DeepR(l1=0.02, noise=0)
    before, after, _, process = watched(deep, budget=Uniform(sparsity=0.75), epochs=10)
    signs, changed = {name: weight >= 0 for name, weight in MaskView(net()).weights().items()}, 0
    steps = zip(before.gradients, after.gradients, before.gradients[1:], strict=False)
    for early, late, then in steps:
        for name, mask in early["masks"].items():
            pull = torch.zeros_like(early["gradients"][name])
            for place in mask.nonzero().tolist():
                pull[*place] = deep.l1 if signs[name][*place] else -deep.l1
            newborn = mask & (early["weights"][name] == 0)
            got = late["gradients"][name] - early["gradients"][name]
            signs[name] = torch.where(newborn, got > 0, signs[name])
            torch.testing.assert_close(got[~newborn], pull[~newborn], rtol=0, atol=1e-6)
            torch.testing.assert_close(got[newborn].abs(), pull[newborn].abs(), rtol=0, atol=1e-6)
            moment = then["moments"][list(early["masks"]).index(name)]["momentum_buffer"]
            assert torch.equal(moment != 0, then["masks"][name] & (then["weights"][name] != 0))
            moved = mask ^ then["masks"][name]
            changed += int(moved.sum())
    assert changed > 50
    for name, mask in process.view.masks().items():
        assert process.pruner.there(process, name, mask).tolist() == sorted(places(mask))


def test_a_group_dies_when_it_has_crossed_its_signs_on_average():
    values = torch.tensor([[1.0, -3.0], [2.0, -1.0], [0.5, 0.0]])
    assert totals(values, Filter()).tolist() == [[-2.0, -2.0], [1.0, 1.0], [0.5, 0.5]]
    view, process = started(DeepR(), structure=Filter(), budget=Uniform(sparsity=0.5))
    weight, mask = view.weights()["0.weight"], view.masks()["0.weight"]
    kept = mask.flatten(1).all(1).nonzero().flatten().tolist()
    process.memory["positive/0.weight"][:] = True
    weight[mask] = 1.0
    weight[kept[0]] = -1.0  # this one dies
    weight[kept[1], 0, 0, 0] = -2.0  # and this one lives
    process.on_gradient(Clock(0, 2, 4), None)
    process.on_step(Clock(1, 2, 4), 16, 1.0)
    assert weight[kept[0]].abs().sum() == 0
    assert weight[kept[1], 0, 0, 0] == -2.0
    assert int(mask.flatten(1).all(1).sum()) == int(mask.flatten(1).any(1).sum()) == len(kept)


def settle(process, weights, epochs, drift):
    """Epochs whose weights move by random steps of these sizes; the distances that the process reports."""
    process.on_start(12, 2, 0)
    rng, found = torch.Generator().manual_seed(3), []
    for epoch in range(1, epochs + 1):
        for weight in weights.values():
            weight += drift(epoch) * torch.randn(weight.shape, generator=rng)
        metrics: dict[str, float] = {}
        process.on_epoch(epoch, process.view.model, metrics)
        found.append(
            (copies(process.selection.masks(weights)), metrics.get("mask_distance"), int(process.memory["caught"]))
        )
    return found


def unlike(first, second):
    pairs = [
        (a, b) for name in first for a, b in zip(*(m[name].flatten().tolist() for m in (first, second)), strict=True)
    ]
    return sum(a != b for a, b in pairs) / len(pairs)


def test_an_early_bird_is_caught_when_five_masks_in_a_row_agree():
    view, process = started(EarlyBird(distance=0.05, until=1), budget=Global(sparsity=0.7))
    found = settle(process, view.weights(), 12, lambda epoch: 0.6 / epoch**3)
    caught = None
    for epoch, (newest, said, _) in enumerate(found[:-1], start=1):
        if caught:
            break
        apart = [unlike(newest, old) for old, _, _ in found[max(0, epoch - 5) : epoch - 1]]
        assert said == (pytest.approx(max(apart)) if apart else None)
        if len(apart) == 4 and max(apart) <= 0.05:
            caught = epoch
    assert caught
    assert caught > 5
    assert found[-1][2] == caught
    assert all(torch.equal(mask, found[caught - 1][0][name]) for name, mask in view.masks().items())


def test_an_early_bird_that_does_not_settle_is_taken_in_the_middle_and_the_optimizer_forgets():
    view, process = started(EarlyBird(distance=0), budget=Global(sparsity=0.7))
    settle(process, view.weights(), 8, lambda epoch: 1.0)
    assert process.memory["caught"] == 6
    parameter = process.weights["0.weight"]
    optimizer = torch.optim.SGD([parameter], 0.1, 0.9)
    optimizer.state[parameter]["momentum_buffer"] = torch.ones_like(parameter)
    process.on_gradient(Clock(13, 2, 12), optimizer)
    assert optimizer.state[parameter]
    process.on_gradient(Clock(12, 2, 12), optimizer)
    assert not optimizer.state[parameter]
    kept = copies(view.masks())
    process.finish()
    assert all(torch.equal(mask, kept[name]) for name, mask in view.masks().items())
    assert view.count().kept == view.count().total - int(0.7 * view.count().total)


def test_an_early_bird_remembers_its_masks():
    view, process = started(EarlyBird(distance=0, until=1))
    settle(process, view.weights(), 3, lambda epoch: 1.0)
    _, resumed = started(EarlyBird(distance=0, until=1))
    resumed.restore(process.state())
    assert resumed.memory["caught"] == 0
    recent = [[{n: m.memory[f"masks/{n}"][age] for n in view.masks()} for age in range(3)] for m in (process, resumed)]
    assert [distance(a, b) for a, b in zip(*recent, strict=True)] == [0, 0, 0]
    assert distance(recent[0][0], recent[0][1]) > 0


def test_scratch_keeps_the_masks_and_draws_every_parameter_anew():
    view, _, _ = staged(DNS(), budget=Global(sparsity=0.6), optim=SGD)
    view.freeze()
    masks, trained = copies(view.masks()), copies(view.model.state_dict())
    state = torch.get_rng_state()
    for seed in (5, 5, 6):
        prune(view, Scratch(), Global(sparsity=0.6), probe=Probe(torch.Generator().manual_seed(seed)))
        assert all(torch.equal(mask, masks[name]) for name, mask in view.masks().items())
        view.attach(MaskView(view.model).sources)
    assert torch.equal(torch.get_rng_state(), state)
    fresh = view.model.state_dict()
    for name, value in fresh.items():
        constant = name.endswith(("mask", "1.weight", "1.bias", "tracked"))
        assert constant or not torch.equal(value, trained[name]), name
    assert fresh["1.running_mean"].abs().sum() == 0
    assert fresh["1.num_batches_tracked"] == 0
    # As torch draws a linear layer of 32 inputs.
    assert fresh["6.parametrizations.weight.original"].abs().max() == pytest.approx(32**-0.5, rel=0.02)
    assert view.model(batch().x).isfinite().all()


def test_scratch_draws_the_same_from_the_same_seed():
    def drawn(seed):
        view = MaskView(net())
        prune(view, Scratch(), Uniform(sparsity=0.5), probe=Probe(torch.Generator().manual_seed(seed)))
        return view.weights()

    first, again, other = drawn(5), drawn(5), drawn(6)
    assert all(torch.equal(weight, again[name]) for name, weight in first.items())
    assert not any(torch.equal(weight, other[name]) for name, weight in first.items())


def test_magnitude_over_filters_removes_those_of_smallest_l1_norm():
    """Li et al., arXiv:1608.08710."""
    view = MaskView(net())
    prune(view, Magnitude(), Uniform(sparsity=0.5), Filter())
    for name, weight in view.weights().items():
        norms = [float(sum(filter.flatten().abs())) for filter in weight]
        kept = view.masks()[name].flatten(1).all(1).tolist()
        smallest = sorted(range(len(norms)), key=norms.__getitem__)[: len(norms) // 2]
        assert [number for number, alive in enumerate(kept) if not alive] == sorted(smallest)


@pytest.mark.parametrize("kept", [4, 14])
def test_births_are_exact_and_alike_everywhere(kept):
    """Where most are free, and where few are."""
    rng, counts = torch.Generator().manual_seed(1), torch.zeros(16)
    for _ in range(600):
        groups = torch.arange(16) < kept
        fill(groups, kept + 2, rng)
        assert groups[:kept].all()
        assert groups.sum() == kept + 2
        counts += groups
    free = counts[kept:]
    assert free.mean() == 600 * 2 / (16 - kept)
    assert (free - free.mean()).abs().max() < 45
