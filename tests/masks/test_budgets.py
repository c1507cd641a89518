"""How many groups each layer keeps, against slow references."""

import math

import pytest
import torch
from torch import Tensor

from hydraprune.core.errors import PruningError, SpecError
from hydraprune.masks import BUDGETS
from hydraprune.masks.budgets import ERK, IGQ, LAMP, FLOPs, Global, Parameters, Table, Uniform
from hydraprune.masks.structures import Block, Filter, Weight

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
    found = Global(sparsity=sparsity, floor=0).allocate(pooled, SHAPES)
    assert found == {name: sum(owner == name for *_, owner in best) for name in SHAPES}
    assert sum(found.values()) == total


def test_normalized_layers_of_another_scale_compare_alike():
    pooled = {name: torch.rand(1000) for name in "abc"}
    budget = Global(sparsity=0.9, floor=0, normalize=True)
    expected = budget.allocate(pooled, {})
    assert budget.allocate({"a": pooled["a"] * 100, "b": pooled["b"], "c": pooled["c"] / 100}, {}) == expected
    assert Global(sparsity=0.9, floor=0).allocate({**pooled, "a": pooled["a"] * 100}, {})["a"] == 300
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
    found, exact = ERK(sparsity=sparsity, floor=0).allocate(importance(SHAPES), SHAPES), shares(target, SHAPES)
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
        budget = BUDGETS.make({"kind": name, "sparsity": sparsity, "floor": 0}, "budget")
        found = budget.allocate(pooled, SHAPES)
        assert all(0 <= found[layer] <= structure.groups(shape) for layer, shape in SHAPES.items())
        assert sparsity or all(found[layer] == structure.groups(shape) for layer, shape in SHAPES.items())


@pytest.mark.parametrize("name", BUDGETS.names())
@pytest.mark.parametrize("bad", [-0.1, 1, 1.5, "abc", "5/4", float("nan")])
def test_sparsity_outside_its_range_is_refused(name, bad):
    with pytest.raises(SpecError, match=r"^budget\.sparsity: "):
        BUDGETS.make({"kind": name, "sparsity": bad}, "budget")


def test_sparsity_may_be_a_fraction():
    assert Uniform(sparsity="9/10").sparsity == 0.9


@pytest.mark.parametrize("sparsity", [0, 0.1, 0.5, 0.9, 0.99])
def test_ideal_gas_quotas_equal_the_bisection_over_their_factor(sparsity):
    """Density 1 / (1 + f n) of a layer of n weights."""
    size = {name: math.prod(shape) for name, shape in SHAPES.items()}
    target = sum(size.values()) - int(sparsity * sum(size.values()))
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        total = sum(n / (1 + middle * n) for n in size.values())
        low, high = (middle, high) if total > target else (low, middle)
    found = IGQ(sparsity=sparsity).allocate(importance(SHAPES), SHAPES)
    assert sum(found.values()) == target
    for name, n in size.items():
        assert abs(found[name] - n / (1 + low * n)) < 1 + 1e-6


def lamp(values: list[float]) -> list[float]:
    """Square over the sum of the squares of all that come no earlier in ascending order."""
    order = sorted(range(len(values)), key=lambda place: (values[place], place))
    found = [0.0] * len(values)
    for rank, place in enumerate(order):
        found[place] = values[place] ** 2 / sum(values[other] ** 2 for other in order[rank:])
    return found


def test_lamp_equals_its_formula_and_does_not_see_the_scale_of_a_layer():
    torch.manual_seed(0)
    pooled = {"a": torch.rand(40), "b": torch.rand(15) * 100, "c": torch.rand(25).square() / 100}
    slow = sorted((v, name) for name, p in pooled.items() for v in lamp(p.double().tolist()))
    for keep in (3, 10, 40, 79, 80):
        found = LAMP(sparsity=1 - (keep + 0.5) / 80 if keep < 80 else 0).allocate(pooled, {})
        best = [name for _, name in slow[len(slow) - sum(found.values()) :]]
        assert sum(found.values()) in (keep, keep + 1)
        assert found == {name: best.count(name) for name in pooled}
        assert min(found.values()) >= 1
    assert LAMP(sparsity=0.5).allocate({"a": torch.zeros(6)}, {}) == {"a": 3}


@pytest.mark.parametrize("kind", [Parameters, FLOPs])
@pytest.mark.parametrize("sparsity", [0, 0.3, 0.5, 0.9])
def test_a_cost_is_spent_on_the_best_groups_until_the_next_is_too_dear(kind, sparsity):
    torch.manual_seed(1)
    pooled = {"a": torch.rand(30), "b": torch.rand(20), "c": torch.rand(4)}
    costs = {"a": torch.full((30,), 9), "b": torch.full((20,), 64), "c": torch.tensor([100, 7, 1, 300])}
    total = 30 * 9 + 20 * 64 + 408
    left = total - int(sparsity * total)
    found = kind(sparsity=sparsity, floor=0).allocate(pooled, {}, costs)
    best = sorted(((float(v), int(costs[n][i]), n) for n, p in pooled.items() for i, v in enumerate(p)), reverse=True)
    expected = dict.fromkeys(pooled, 0)
    for _, cost, name in best:
        if cost > left:
            break
        left -= cost
        expected[name] += 1
    assert found == expected
    assert sparsity or found == {"a": 30, "b": 20, "c": 4}


def test_equal_costs_are_no_costs():
    pooled = importance({"a": (50,), "b": (70,)})
    ones = {name: torch.ones(len(p), dtype=torch.int64) for name, p in pooled.items()}
    for sparsity in (0, 0.3, 0.77):
        assert Parameters(sparsity=sparsity).allocate(pooled, {}, ones) == Global(sparsity=sparsity).allocate(
            pooled, {}
        )


def test_a_table_says_the_sparsity_of_each_layer():
    names = ("conv1.weight", "layer1.0.conv1.weight", "layer1.1.conv1.weight", "fc.weight")
    pooled = {name: torch.rand(100) for name in names}
    layers = {"conv1": 0, "layer1.0.*": "1/4", "layer1.*": 0.5}
    assert list(Table(sparsity=0.9, layers=layers).allocate(pooled, {}).values()) == [100, 75, 50, 10]
    with pytest.raises(PruningError, match=r"no prunable layer is called 'conv2'; did you mean 'conv1'\?"):
        Table(sparsity=0.9, layers={"conv2": 0.5}).allocate(pooled, {})
    with pytest.raises(SpecError, match=r"layers\.conv1: .*less than 1"):
        Table(sparsity=0.9, layers={"conv1": 1})


@pytest.mark.parametrize("name", BUDGETS.names())
def test_no_layer_dies_below_its_floor(name):
    shapes = {"tiny": (2, 3), "small": (10, 10), "large": (100, 100)}
    pooled = {"tiny": torch.rand(6) / 1e6, "small": torch.rand(100) / 1e3, "large": 1 + torch.rand(10000)}
    for floor in (1, 5, 8):
        budget = BUDGETS.make({"kind": name, "sparsity": 0.99, "floor": floor}, "budget")
        found = budget.allocate(pooled, shapes)
        assert found["tiny"] >= min(floor, 6)
        assert found["small"] >= floor
        if name not in ("uniform", "table"):
            assert sum(found.values()) == 10106 - int(0.99 * 10106)


@pytest.mark.parametrize("name", sorted({*BUDGETS.names()} - {"uniform", "table"}))
def test_a_sparsity_beyond_the_floor_is_refused(name):
    pooled, shapes = importance(SHAPES), SHAPES
    costs = {layer: torch.ones(len(p), dtype=torch.int64) for layer, p in pooled.items()}
    budget = BUDGETS.make({"kind": name, "sparsity": 0.999, "floor": 30}, "budget")
    with pytest.raises(
        PruningError, match=r"sparsity 0\.999 leaves 34 (groups|weights|macs), but floor 30 keeps 180; lower"
    ):
        budget.allocate(pooled, shapes, costs)


def test_groups_at_the_edge_cost_what_they_have():
    assert Block(rows=4, columns=3).sizes((6, 5, 1, 1)).tolist() == [12, 8, 6, 4]
    assert Filter().sizes((6, 5, 3, 3)).tolist() == [45] * 6
