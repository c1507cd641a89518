"""What every pruner must do with every budget and every structure."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from contracts.grouping import members
from contracts.material import batch, net
from hydraprune.core.errors import PruningError, SpecError
from hydraprune.core.threat import ThreatModel
from hydraprune.masks import BUDGETS, STRUCTURES
from hydraprune.masks.macs import macs_per_weight
from hydraprune.masks.source import LearnedMask
from hydraprune.masks.view import MaskView
from hydraprune.objectives.pgd import PGD
from hydraprune.pruners import PRUNERS
from hydraprune.pruners.base import Learned, Moving, OneShot
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.pruning import prune
from hydraprune.train import Optim, fit

THREAT = ThreatModel(eps=0.1)
ROBUST = PGD(steps=1)

PATTERNS = [name for name in STRUCTURES.names() if STRUCTURES.get(name)().sparsity is not None]
"""Structures that take no budget."""
GROUPED = [name for name in STRUCTURES.names() if name not in PATTERNS and not STRUCTURES.get(name).spans]
"""Structures whose groups lie in one layer each; `tests/pruners/test_coupled.py` has those that reach over layers."""


def pairs(pruner):
    """Budget and structure: all of either with two pruners, the commonest with the others."""
    if pruner not in ("hydra", "magnitude"):
        costs = [("flops", "weight"), ("parameters", "block")] if pruner == "harp" else []
        return [("uniform", "weight"), ("global", "weight"), ("uniform", "filter"), *costs]
    grouped = [("uniform", structure) for structure in GROUPED] + [("global", "channel"), ("parameters", "block")]
    single = [(budget, "weight") for budget in BUDGETS.names() if budget != "uniform"]
    return grouped + single + [("flops", "filter")] + [(None, structure) for structure in PATTERNS]


everything = [
    pytest.param(pruner, budget, structure, id=f"{pruner}-{budget}-{structure}")
    for pruner in PRUNERS.names()
    for budget, structure in pairs(pruner)
]
combinations = pytest.mark.parametrize(("pruner", "budget", "structure"), everything)
pruners = pytest.mark.parametrize("pruner", PRUNERS.names())


class Batches:
    """Two batches in each epoch."""

    def __len__(self):
        return 2

    def epoch(self, number):
        return iter([batch(), batch(12)])


def probe(seed=0):
    return Probe(torch.Generator().manual_seed(seed), ROBUST, THREAT, lambda: [batch()])


def pruned(model, pruner, budget, structure, sparsity, seed=0, exempt=()):
    """A view of `model` with the masks of a finished pruning stage, and its handle."""
    view = MaskView(model, exempt)
    chosen, shared = PRUNERS.get(pruner)(), budget and BUDGETS.get(budget)(sparsity=sparsity)
    return view, prune(view, chosen, shared, STRUCTURES.get(structure)(), probe(seed))


def trained(model, pruner, budget, structure, sparsity, seed=0, epochs=5, exempt=()):
    """The same after the stage's training."""
    view, pruning = pruned(model, pruner, budget, structure, sparsity, seed, exempt)
    over = PRUNERS.get(pruner).over
    if over is not None:
        with pruning:
            moving, optim = pruning.parameters(), Optim(lr=0.05)
            fit(model, moving, Batches(), ROBUST, epochs=epochs, optim=optim, threat=THREAT, seed=seed, hooks=[pruning])
    view.freeze()
    return view


def bound(view, structure):
    """Name -> structure for the layer of that name."""
    return {name: STRUCTURES.get(structure)().on(module) for name, (module, *_) in view.modules.items()}


@combinations
@pytest.mark.parametrize("sparsity", [0.5, 0.75])
def test_exactly_as_many_groups_are_kept_as_the_budget_says(pruner, budget, structure, sparsity):
    view = trained(net(), pruner, budget, structure, sparsity)
    masks, kinds, kept, sizes = view.masks(), bound(view, structure), {}, {}
    weights = MaskView(net()).weights()
    assert masks.keys() == weights.keys()
    for name, mask in masks.items():
        assert (mask.dtype, mask.shape) == (torch.bool, weights[name].shape)
        pieces = [mask.flatten()[group] for group in members(kinds[name], view.modules[name][0])]
        if structure in PATTERNS:
            assert all(int(piece.sum()) == min(kinds[name].n, len(piece)) for piece in pieces)
            continue
        assert all(piece.all() == piece.any() for piece in pieces), f"{name} has a group in pieces"
        kept[name], sizes[name] = sum(bool(piece.all()) for piece in pieces), len(pieces)
    # Removed counts are truncated, in each layer or over all of them.
    each = {name: size - int(sparsity * size) for name, size in sizes.items()}
    total = sum(sizes.values()) - int(sparsity * sum(sizes.values()))
    if budget in ("uniform", "table") and pruner != "harp":  # which learns what each layer keeps
        assert kept == each
    elif budget in ("parameters", "flops"):
        costs = macs_per_weight(view, batch().x) if budget == "flops" else dict.fromkeys(masks, 1)
        spent = sum(int(mask.sum()) * costs[name] for name, mask in masks.items())
        whole = sum(mask.numel() * costs[name] for name, mask in masks.items())
        dearest = max(int(kind.sizes(masks[name].shape).max()) * costs[name] for name, kind in kinds.items())
        assert 0 <= whole - int(sparsity * whole) - spent < dearest
    elif budget is not None:
        assert sum(kept.values()) == (sum(each.values()) if budget in ("uniform", "table") else total)
    assert view.count().kept == sum(int(mask.sum()) for mask in masks.values())
    assert model_is_finite(view.model)


def model_is_finite(model):
    return bool(model(batch().x).isfinite().all())


@combinations
def test_what_is_kept_is_what_is_important(pruner, budget, structure):
    method = PRUNERS.get(pruner)
    if not issubclass(method, OneShot | Learned) or method.begin not in (OneShot.begin, Learned.begin):
        pytest.skip("its masks begin by a rule of its own")
    if issubclass(method, OneShot) and method.select is not OneShot.select:
        pytest.skip("it selects in rounds, or draws new weights")
    view, _ = pruned(net(), pruner, budget, structure, 0.5)
    scores = method().score(MaskView(net()), probe())
    kinds = bound(view, structure)
    for name, mask in view.masks().items():
        importance, kept = kinds[name].pool(scores[name]), kinds[name].pool(mask.float()) >= 1
        if kept.any() and not kept.all():
            assert importance[kept].min() >= importance[~kept].max()


@combinations
def test_the_seed_decides(pruner, budget, structure):
    first, second = (trained(net(), pruner, budget, structure, 0.5, seed=4) for _ in range(2))
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name])


@pruners
def test_a_stage_that_was_cut_goes_on_to_the_same_network(pruner, tmp_path):
    over = PRUNERS.get(pruner).over
    if over is None:
        pytest.skip("nothing is trained")
    states = []
    for cuts in ([4], [1, 2, 4]):
        for epochs in cuts:
            view, pruning = pruned(net(), pruner, "uniform", "weight", 0.5)
            moving, optim = view.train(over), Optim(lr=0.05, schedule="constant")
            path = tmp_path / f"{len(cuts)}.safetensors"
            settings = {"optim": optim, "threat": THREAT, "state": path, "hooks": [pruning]}
            with nullcontext() if epochs == 4 else pytest.raises(Killed):
                fit(view.model, moving, Cut(epochs), ROBUST, epochs=4, **settings)
        pruning.freeze()
        states.append(view.model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


class Killed(BaseException):
    """Ends training as a signal would."""


class Cut(Batches):
    """Batches that end with the process after some epochs."""

    def __init__(self, epochs):
        self.epochs = epochs

    def epoch(self, number):
        if number == self.epochs:
            raise Killed
        return super().epoch(number)


@combinations
def test_the_random_numbers_of_others_are_left_alone(pruner, budget, structure):
    model = net()
    state = torch.get_rng_state()
    pruned(model, pruner, budget, structure, 0.5)
    assert torch.equal(torch.get_rng_state(), state)


@combinations
def test_sparsity_0_removes_nothing(pruner, budget, structure):
    if budget is None:
        pytest.skip("the structure says what is removed")
    view = trained(net(), pruner, budget, structure, 0)
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
    keys = model.state_dict().keys()
    view = trained(model, pruner, budget, structure, 0.5, epochs=2)
    assert set(view.masks()) == {f"{layer}.weight" for layer in ("grouped", "mixing", "growing", "along", "head")}
    assert 0 < view.count().kept < view.count().total
    assert model_is_finite(model)
    baked = view.bake()
    assert baked.state_dict().keys() == keys
    for name, weight in view.weights().items():
        assert torch.equal(baked.get_parameter(name), weight * view.masks()[name])
    assert torch.equal(model(batch().x), baked(batch().x))


@combinations
def test_what_trains_scores_or_fixes_the_mask_leaves_the_weights(pruner, budget, structure):
    if PRUNERS.get(pruner).over == "weights":
        pytest.skip("it trains weights")
    model = Unseen()
    before = copy.deepcopy(model.state_dict())
    prepared = pruned(model, pruner, budget, structure, 0.5)[0].weights()
    view = trained(Unseen(), pruner, budget, structure, 0.5, epochs=2)
    for name, weight in view.weights().items():
        assert torch.equal(weight, prepared[name])
        if not PRUNERS.get(pruner)().redraws:
            assert torch.equal(weight, before[name])


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


@pruners
def test_exempt_layers_stay_dense(pruner):
    view = trained(Unseen(), pruner, "uniform", "weight", 0.5, epochs=2, exempt=["first", "head"])
    assert set(view.masks()) == {f"{layer}.weight" for layer in ("mixing", "growing", "along")}
    dense = {name for name, count in view.counts().items() if count.kept == count.total}
    assert dense == {"grouped.weight", "head.weight"}
    assert model_is_finite(view.model)


@pruners
@pytest.mark.parametrize("structure", ["weight", *PATTERNS])
def test_a_budget_that_does_not_fit_the_structure_is_refused(pruner, structure):
    budget = None if structure == "weight" else "uniform"
    with pytest.raises(
        PruningError, match="a pruner needs a budget" if budget is None else r"'uniform' does not apply"
    ):
        pruned(net(), pruner, budget, structure, 0.5)


@pruners
def test_scores_are_there_to_train_when_the_pruner_says_so(pruner):
    view, _ = pruned(net(), pruner, "uniform", "weight", 0.5)
    learned = [isinstance(source, LearnedMask) for source in view.sources.values()]
    over = PRUNERS.get(pruner).over
    kinds = {"scores": Learned, "weights": Moving, None: OneShot}
    assert issubclass(PRUNERS.get(pruner), kinds[over])
    assert learned == [over == "scores"] * 3
    if over == "scores":
        scores = [tensor for name, tensor in view.train("scores") if name.startswith("score:")]
        assert [tuple(score.shape) for score in scores] == [tuple(weight.shape) for weight in view.weights().values()]
        assert all(score.requires_grad for score in scores)


@pytest.mark.parametrize("budget", BUDGETS.names())
@pytest.mark.parametrize("sparsity", [1.0, -0.1, 1.5, float("nan")])
def test_a_budget_refuses_what_is_no_sparsity(budget, sparsity):
    with pytest.raises(SpecError, match="sparsity"):
        BUDGETS.get(budget)(sparsity=sparsity)
