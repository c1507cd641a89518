"""What every pruner must do with every budget and every structure."""

import copy

import pytest
import torch
from torch import nn

from contracts.material import batch, net
from hydraprune.core.errors import SpecError
from hydraprune.masks import BUDGETS, STRUCTURES
from hydraprune.masks.source import LearnedMask
from hydraprune.masks.view import MaskView
from hydraprune.pruners import PRUNERS
from hydraprune.pruners.base import prune

everything = [
    pytest.param(pruner, budget, structure, id=f"{pruner}-{budget}-{structure}")
    for pruner in PRUNERS.names()
    for budget in BUDGETS.names()
    for structure in STRUCTURES.names()
]
combinations = pytest.mark.parametrize(("pruner", "budget", "structure"), everything)


def pruned(model, pruner, budget, structure, sparsity, seed=0):
    view = MaskView(model)
    chosen, shared = PRUNERS.get(pruner)(), BUDGETS.get(budget)(sparsity=sparsity)
    prune(view, chosen, shared, STRUCTURES.get(structure)(), torch.Generator().manual_seed(seed))
    return view


def groups(mask, structure):
    """(groups, weights in a group) of a mask whose groups lie one after the other."""
    return mask.view(STRUCTURES.get(structure)().groups(tuple(mask.shape)), -1)


@combinations
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.75])
def test_exactly_as_many_groups_are_kept_as_the_budget_says(pruner, budget, structure, sparsity):
    view = pruned(net(), pruner, budget, structure, sparsity)
    chosen, shape = PRUNERS.get(pruner)(), STRUCTURES.get(structure)()
    fresh = MaskView(net())
    scores = chosen.score(fresh, torch.Generator().manual_seed(0))
    shapes = {name: tuple(weight.shape) for name, weight in fresh.weights().items()}
    pooled = {name: shape.pool(score) for name, score in scores.items()}
    allotted = BUDGETS.get(budget)(sparsity=sparsity).allocate(pooled, shapes)
    masks = view.masks()
    assert masks.keys() == fresh.weights().keys()
    kept, sizes = 0, []
    for name, mask in masks.items():
        assert (mask.dtype, tuple(mask.shape)) == (torch.bool, shapes[name])
        whole = groups(mask, structure)
        assert torch.equal(whole.all(1), whole.any(1)), f"{name} has a group in pieces"
        assert int(whole.all(1).sum()) == allotted[name]
        kept, sizes = kept + allotted[name], [*sizes, len(whole)]
    # Removed counts are truncated, in each layer or over all of them.
    assert kept in {sum(n - int(sparsity * n) for n in sizes), sum(sizes) - int(sparsity * sum(sizes))}
    assert view.count().kept == sum(int(mask.sum()) for mask in masks.values())


@combinations
def test_what_is_kept_is_what_is_important(pruner, budget, structure):
    view = pruned(net(), pruner, budget, structure, 0.5)
    scores = PRUNERS.get(pruner)().score(MaskView(net()), torch.Generator().manual_seed(0))
    for name, mask in view.masks().items():
        importance = STRUCTURES.get(structure)().pool(scores[name])
        kept = groups(mask, structure).all(1)
        if kept.any() and not kept.all():
            assert importance[kept].min() >= importance[~kept].max()


@combinations
def test_the_seed_decides_and_the_weights_stay(pruner, budget, structure):
    first, second = (pruned(net(), pruner, budget, structure, 0.5, seed=4) for _ in range(2))
    assert all(torch.equal(mask, second.masks()[name]) for name, mask in first.masks().items())
    for name, weight in MaskView(net()).weights().items():
        assert torch.equal(weight, first.weights()[name])
        assert torch.equal(first.bake().get_parameter(name), weight * first.masks()[name])


@combinations
def test_the_random_numbers_of_others_are_left_alone(pruner, budget, structure):
    model = net()
    state = torch.get_rng_state()
    pruned(model, pruner, budget, structure, 0.5)
    assert torch.equal(torch.get_rng_state(), state)


@combinations
def test_sparsity_0_changes_nothing(pruner, budget, structure):
    model = net().eval()
    with torch.no_grad():
        before = model(batch().x)
        view = pruned(model, pruner, budget, structure, 0)
        assert torch.equal(model(batch().x), before)
    count = view.count()
    assert count.kept == count.total
    assert all(mask.all() for mask in view.masks().values())


class Unseen(nn.Module):
    """Layers that no built-in network has: grouped, transposed, 1-d, a linear layer of one's own, an idle parameter."""

    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.temperature = nn.Parameter(torch.tensor(2.0))
        self.grouped = nn.Conv2d(1, 4, 3, padding=1)
        self.mixing = nn.Conv2d(4, 8, 3, stride=2, groups=2, padding_mode="reflect", padding=1)
        self.growing = nn.ConvTranspose2d(8, 6, 2, stride=2, bias=False)
        self.along = nn.Conv1d(6, 5, 4)
        self.norm = nn.GroupNorm(5, 5)
        self.head = self.Scaled(5, 10)

    def forward(self, x):
        x = self.growing(self.mixing(self.grouped(x).relu()).relu()).flatten(2)
        return self.head(self.norm(self.along(x)).amax(2)) / self.temperature


@combinations
def test_a_module_that_nobody_has_seen(pruner, budget, structure):
    model = Unseen()
    before = copy.deepcopy(model.state_dict())
    view = pruned(model, pruner, budget, structure, 0.5)
    assert set(view.masks()) == {f"{layer}.weight" for layer in ("grouped", "mixing", "growing", "along", "head")}
    assert 0 < view.count().kept < view.count().total
    assert model(batch().x).isfinite().all()
    baked = view.bake()
    assert baked.state_dict().keys() == before.keys()
    for name, value in baked.state_dict().items():
        assert torch.equal(value, before[name] * view.masks()[name] if name in view.masks() else before[name])
    view.freeze()
    assert torch.equal(model(batch().x), baked(batch().x))


@pytest.mark.parametrize("structure", STRUCTURES.names())
@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (4, 8), (4, 2, 4)])
def test_a_group_is_important_where_its_own_weights_are(structure, shape):
    """Whatever the formula: the group that `expand` shows is the one whose importance `pool` raises."""
    kind = STRUCTURES.get(structure)()
    count = kind.groups(shape)
    covered = torch.zeros(shape)
    for group in range(count):
        mask = kind.expand(torch.arange(count) == group, shape).expand(shape)
        covered += mask
        importance = kind.pool(torch.where(mask, -3.0, 0.5))
        assert importance.shape == (count,)
        assert importance.argmax() == group
        assert importance.min() >= 0
    assert torch.equal(covered, torch.ones(shape))


@pytest.mark.parametrize("pruner", PRUNERS.names())
def test_a_pruner_that_learns_has_scores_to_train_and_no_other_has(pruner):
    view = pruned(net(), pruner, "uniform", "weight", 0.5)
    learns = PRUNERS.get(pruner)().learns
    assert [isinstance(source, LearnedMask) for source in view.sources.values()] == [learns] * 3
    if learns:
        scores = [tensor for name, tensor in view.parameters("scores") if name.startswith("score:")]
        assert [tuple(score.shape) for score in scores] == [tuple(weight.shape) for weight in view.weights().values()]
        assert all(score.requires_grad for score in scores)


@pytest.mark.parametrize("budget", BUDGETS.names())
@pytest.mark.parametrize("sparsity", [1.0, -0.1, 1.5, float("nan")])
def test_a_budget_refuses_what_is_no_sparsity(budget, sparsity):
    with pytest.raises(SpecError, match="sparsity"):
        BUDGETS.get(budget)(sparsity=sparsity)
