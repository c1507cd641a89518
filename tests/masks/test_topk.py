"""Exact selection against a stable sort, and the gradient that passes straight through it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from hydraprune.core.errors import PruningError
from hydraprune.masks import topk
from hydraprune.masks.source import FixedMask, LearnedMask, frozen, selected
from hydraprune.masks.structures import Filter, Weight
from hydraprune.masks.topk import StraightThrough, affordable, top_mask


def sorted_mask(values: Tensor, keep: int) -> Tensor:
    """A stable ascending sort whose first N - keep entries are dropped."""
    order = sorted(range(len(values)), key=values.tolist().__getitem__)
    mask = torch.ones(len(values), dtype=torch.bool)
    mask[order[: len(values) - keep]] = False
    return mask


MAKERS = {
    "floats": lambda n, rng: torch.rand(n, generator=rng),
    "ties": lambda n, rng: torch.randint(0, 4, (n,), generator=rng).float(),
    "equal": lambda n, rng: torch.full((n,), 0.7),
    "zeros": lambda n, rng: torch.zeros(n),
    "mostly zero": lambda n, rng: torch.rand(n, generator=rng) * (torch.rand(n, generator=rng) < 0.2),
    "crowded": lambda n, rng: 1 + 1e-3 * torch.rand(n, generator=rng),
    "wide": lambda n, rng: torch.exp(30 * torch.randn(n, generator=rng)),
    "tiny": lambda n, rng: torch.rand(n, generator=rng) * 1e-42,
    "infinite": lambda n, rng: torch.where(torch.rand(n, generator=rng) < 0.3, torch.inf, 1.0),
    "double": lambda n, rng: torch.rand(n, generator=rng, dtype=torch.float64),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [1, 2, 9, 200])
@pytest.mark.parametrize("kind", MAKERS)
def test_equals_a_stable_sort_whatever_the_guess(kind, n, seed):
    values = MAKERS[kind](n, torch.Generator().manual_seed(seed))
    for keep in sorted({0, 1, n // 10, n // 2, n - 1, n}):
        expected = sorted_mask(values, keep)
        at = float(values.sort().values[n - keep]) if keep else float("inf")
        guesses = [None, at, 0.995 * at, 1.005 * at, 0.9901 * at, 1.0101 * at, 0.5 * at, 2 * at]
        for near in [*guesses, 0.0, -1.0, float("inf"), float("nan"), 1e-45]:
            mask, found = top_mask(values, keep, near)
            assert mask.dtype == torch.bool
            assert torch.equal(mask, expected), (keep, near)
            assert found == at


def test_the_caller_keeps_its_values():
    values = torch.rand(50)
    before = values.clone()
    top_mask(values, 10)
    top_mask(values, 10, 0.8)
    assert torch.equal(values, before)


def test_a_right_guess_spares_the_partition_of_all_values(monkeypatch):
    sizes = []
    plain = topk._kth_largest
    monkeypatch.setattr(topk, "_kth_largest", lambda values, k: (sizes.append(len(values)), plain(values, k))[1])
    values = torch.rand(10000)
    _, at = top_mask(values, 1000)
    top_mask(values, 1000, at * 1.002)
    top_mask(values, 1000, at * 2)
    assert sizes[0] == sizes[2] == 10000
    assert sizes[1] < 300


@pytest.mark.parametrize("keep", [0, 1, 30, 99, 100])
@pytest.mark.parametrize("kind", ["floats", "ties", "equal"])
def test_ties_may_fall_as_torch_sorts_them(kind, keep):
    values = MAKERS[kind](100, torch.Generator().manual_seed(0))
    expected = torch.ones(100, dtype=torch.bool)
    expected[values.sort().indices[: 100 - keep]] = False
    assert torch.equal(top_mask(values, keep, sort_ties=True)[0], expected)


@pytest.mark.parametrize("near", [None, 1.0])
@pytest.mark.parametrize("values", [[np.nan, 3, 2, 1], [1, 1, 1, np.nan], [np.nan] * 4, [1, np.nan, np.inf, 2]])
def test_nan_is_refused(values, near):
    for keep in range(1, 5):
        with pytest.raises(PruningError, match="NaN; lower the learning rate"):
            top_mask(torch.tensor(values), keep, near)


@pytest.mark.parametrize("keep", [-1, 5])
def test_more_than_all_or_less_than_none_is_refused(keep):
    with pytest.raises(PruningError, match=f"cannot keep {keep} of 4 groups"):
        top_mask(torch.rand(4), keep)


def scored() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights, scores with zeros and both signs, a mask, and a gradient that arrives at the masked weight."""
    score = torch.randn(4, 3, 2)
    score[0] = 0
    return torch.randn(4, 3, 2), score, torch.rand(4, 3, 2) < 0.5, torch.randn(4, 3, 2)


def test_gradients_pass_straight_through():
    weight, score, mask, gradient = scored()
    weight.requires_grad_()
    score.requires_grad_()
    masked = StraightThrough.apply(weight, score, mask)
    assert torch.equal(masked, weight * mask)
    masked.backward(gradient)
    for i in range(weight.numel()):
        g, w, s, m = (float(t.detach().flatten()[i]) for t in (gradient, weight, score, mask))
        assert float(weight.grad.flatten()[i]) == pytest.approx(g if m else 0, abs=1e-12)
        assert float(score.grad.flatten()[i]) == pytest.approx(g * w * ((s > 0) - (s < 0)), rel=1e-5, abs=1e-12)
    assert mask.any()
    assert not mask.all()
    assert score.grad[~mask & (score != 0)].all()  # dropped entries learn too
    assert not score.grad[0].any()


@pytest.mark.parametrize("over_weight", [True, False])
@pytest.mark.parametrize("over_score", [True, False])
def test_no_gradient_is_computed_that_nobody_asked_for(over_weight, over_score):
    weight, score, mask, gradient = scored()
    ctx = SimpleNamespace(saved_tensors=(weight, score, mask), needs_input_grad=(over_weight, over_score, False))
    found = StraightThrough.backward(ctx, gradient)
    assert [g is not None for g in found] == [over_weight, over_score, False]


@pytest.mark.parametrize("structure", [Weight(), Filter()])
def test_a_learned_mask_follows_its_scores_and_can_be_fixed(structure):
    weight, score, _, gradient = scored()
    keep = structure.groups(tuple(score.shape)) // 2
    source, given = LearnedMask(score, keep, structure), score.clone()
    for _ in range(3):
        expected = selected(source.score, keep, structure)
        assert torch.equal(source.current(), expected)
        assert torch.equal(source(weight), weight * expected)
        fixed = frozen(source)
        with torch.no_grad():
            source.score.copy_(torch.randn_like(score))
        assert torch.equal(fixed(weight), weight * expected)
    assert torch.equal(score, given)
    source(weight).backward(gradient)
    torch.testing.assert_close(source.score.grad, gradient * weight * source.score.sign())


def test_pruned_weights_get_no_gradient_through_a_fixed_mask():
    weight, _, mask, gradient = scored()
    source = FixedMask(mask)
    source(weight.requires_grad_()).backward(gradient)
    assert torch.equal(weight.grad, gradient * mask)
    assert not list(source.parameters())
    assert "mask" in source.state_dict()


@pytest.mark.parametrize("levels", [2, 50, 10**6])
@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.9, 1])
def test_what_is_affordable_equals_buying_one_by_one(levels, share):
    rng = torch.Generator().manual_seed(levels)
    values = torch.randint(levels, (5000,), generator=rng).float()
    values[::700] = torch.inf
    cost = torch.randint(4, (5000,), generator=rng)
    left = total = int(share * cost.sum())
    bought = []
    for place in sorted(range(5000), key=lambda i: (float(values[i]), i), reverse=True):
        left -= int(cost[place])
        if left < 0:
            break
        bought.append(place)
    assert affordable(values, cost, total).nonzero().flatten().tolist() == sorted(bought)
