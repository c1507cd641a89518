"""How many groups each layer keeps, against slow references; and what a group is."""

import math

import pytest
import torch
from torch import Tensor

from hydraprune.core.errors import SpecError
from hydraprune.masks import BUDGETS, STRUCTURES
from hydraprune.masks.budgets import ERK, Global, Uniform
from hydraprune.masks.source import selected
from hydraprune.masks.structures import Filter, Weight

SPARSITIES = [0, 0.1, 0.5, 0.9, 0.95, 0.99, 0.999]
SHAPES = {
    "first": (16, 3, 3, 3),
    "wide": (64, 32, 3, 3),
    "pointwise": (8, 64, 1, 1),
    "depthwise": (32, 1, 3, 3),
    "hidden": (100, 128),
    "last": (10, 100),
}


def importance(shapes: dict[str, tuple[int, ...]], levels: int = 0) -> dict[str, Tensor]:
    """Random importance per weight, each layer of another scale; with `levels`, full of ties."""
    pooled = {name: torch.rand(math.prod(shape)) * 2**i for i, (name, shape) in enumerate(shapes.items())}
    return {name: (p * levels).floor() if levels else p for name, p in pooled.items()}


@pytest.mark.parametrize(("size", "sparsity", "kept"), [(2560, 0.99, 26), (10, 0.99, 1), (3, 0.5, 2), (7, 0, 7)])
def test_uniform_rounds_as_the_authors_do(size, sparsity, kept):
    assert Uniform(sparsity=sparsity).allocate({"w": torch.rand(size)}, {"w": (size,)}) == {"w": kept}


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_uniform_truncates_the_removed_count_of_every_layer(sparsity):
    found = Uniform(sparsity=sparsity).allocate(importance(SHAPES), SHAPES)
    for name, shape in SHAPES.items():
        size = math.prod(shape)
        assert found[name] == size - int(sparsity * size)
        assert found[name] >= 1


@pytest.mark.parametrize("levels", [0, 3])
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_global_equals_a_sort_over_all_layers(sparsity, levels):
    pooled = importance(SHAPES, levels)
    every = [(float(v), place, name) for place, (name, v) in enumerate((n, v) for n in pooled for v in pooled[n])]
    total = len(every) - int(sparsity * len(every))
    best = sorted(every)[len(every) - total :]
    found = Global(sparsity=sparsity).allocate(pooled, SHAPES)
    assert found == {name: sum(owner == name for *_, owner in best) for name in SHAPES}
    assert sum(found.values()) == total


def test_normalized_layers_of_another_scale_compare_alike():
    pooled = {name: torch.rand(1000) for name in "abc"}
    budget = Global(sparsity=0.9, normalize=True)
    expected = budget.allocate(pooled, {})
    assert budget.allocate({"a": pooled["a"] * 100, "b": pooled["b"], "c": pooled["c"] / 100}, {}) == expected
    assert Global(sparsity=0.9).allocate({**pooled, "a": pooled["a"] * 100}, {})["a"] == 300
    assert sum(budget.allocate({**pooled, "b": torch.zeros(1000)}, {}).values()) == 300


def shares(target: int, shapes: dict[str, tuple[int, ...]]) -> dict[str, float]:
    """Erdos-Renyi-kernel densities times sizes, no density above 1, by bisection over the common factor."""
    raw = {name: sum(shape) / math.prod(shape) for name, shape in shapes.items()}
    size = {name: math.prod(shape) for name, shape in shapes.items()}
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        total = sum(min(1, middle * raw[name]) * size[name] for name in shapes)
        low, high = (middle, high) if total < target else (low, middle)
    return {name: min(1, low * raw[name]) * size[name] for name in shapes}


@pytest.mark.parametrize("sparsity", [*SPARSITIES, 0.3, 0.66, 0.9999])
def test_erk_equals_the_bisection_and_its_total_is_exact(sparsity):
    total = sum(map(math.prod, SHAPES.values()))
    target = total - int(sparsity * total)
    found, exact = ERK(sparsity=sparsity).allocate(importance(SHAPES), SHAPES), shares(target, SHAPES)
    assert sum(found.values()) == target
    for name, shape in SHAPES.items():
        assert abs(found[name] - exact[name]) < 1 + 1e-6
        assert 0 <= found[name] <= math.prod(shape)
    if sparsity == 0.5:  # some layers are whole and some are not
        assert found["last"] == 1000
        assert found["wide"] < 64 * 32 * 9


def test_erk_rounds_the_largest_remainders_up():
    shapes = {"a": (3, 3), "b": (5, 5), "c": (40, 40)}
    found, exact = ERK(sparsity=0.9).allocate(importance(shapes), shapes), shares(164, shapes)
    up = {name for name in shapes if found[name] > exact[name] + 1e-6}
    down = {name for name in shapes if found[name] < exact[name] - 1e-6}
    assert up
    assert down
    assert min(exact[n] % 1 for n in up) >= max(exact[n] % 1 for n in down)


@pytest.mark.parametrize("name", BUDGETS.names())
@pytest.mark.parametrize("sparsity", [0, 0.37, 0.9, 0.99])
def test_every_budget_takes_groups_of_any_structure(name, sparsity):
    for structure in (Weight(), Filter()):
        pooled = {layer: structure.pool(torch.randn(shape)) for layer, shape in SHAPES.items()}
        found = BUDGETS.make({"kind": name, "sparsity": sparsity}, "budget").allocate(pooled, SHAPES)
        assert all(0 <= found[layer] <= structure.groups(shape) for layer, shape in SHAPES.items())
        assert sparsity or all(found[layer] == structure.groups(shape) for layer, shape in SHAPES.items())


@pytest.mark.parametrize("name", BUDGETS.names())
@pytest.mark.parametrize("bad", [-0.1, 1, 1.5, "abc", "5/4", float("nan")])
def test_sparsity_outside_its_range_is_refused(name, bad):
    with pytest.raises(SpecError, match=r"^budget\.sparsity: "):
        BUDGETS.make({"kind": name, "sparsity": bad}, "budget")


def test_sparsity_may_be_a_fraction():
    assert Uniform(sparsity="9/10").sparsity == 0.9


@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (5, 7), (6, 1, 3)])
@pytest.mark.parametrize("name", STRUCTURES.names())
def test_a_structure_keeps_whole_groups_in_the_order_of_importance(name, shape):
    structure, score = STRUCTURES.make(name, "structure"), torch.randn(shape)
    rows = score.abs().reshape(shape[0], -1).tolist()
    slow = [v for row in rows for v in row] if name == "weight" else [sum(row) / len(row) for row in rows]
    torch.testing.assert_close(structure.pool(score), torch.tensor(slow))
    assert structure.groups(shape) == len(slow)
    for keep in range(len(slow) + 1):
        mask = selected(score, keep, structure)
        assert mask.shape == score.shape
        assert int(mask.sum()) == keep * score.numel() // len(slow)
        best = sorted(range(len(slow)), key=slow.__getitem__)[len(slow) - keep :]
        assert set(mask.reshape(len(slow), -1).any(1).nonzero().flatten().tolist()) == set(best)
        assert torch.equal(mask.reshape(len(slow), -1).all(1), mask.reshape(len(slow), -1).any(1))


def test_pooling_takes_no_gradient():
    score = torch.randn(3, 4, requires_grad=True)
    assert not any(structure.pool(score).requires_grad for structure in (Weight(), Filter()))
