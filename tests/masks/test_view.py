"""A model as prunable weights: names, masks, what trains, counts, and the baked network."""

import copy

import pytest
import torch
from torch import Tensor, nn

from hydraprune.core.errors import PruningError
from hydraprune.masks.source import FixedMask, LearnedMask
from hydraprune.masks.structures import Weight
from hydraprune.masks.view import LayerCount, MaskView


class Net(nn.Module):
    """Four prunable weights, three norm layers with scale and shift, one without, and a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.block = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False))
        self.group = nn.GroupNorm(2, 4)
        self.hidden = nn.Linear(4 * 16, 5)
        self.layer = nn.LayerNorm(5)
        self.flat = nn.BatchNorm1d(5, affine=False)
        self.head = nn.Linear(5, 3)
        self.temperature = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.hidden(self.group(self.block(self.conv(x))).flatten(1))
        return self.head(self.flat(self.layer(hidden)).relu()) * self.temperature


WEIGHTS = ["conv.weight", "block.2.weight", "hidden.weight", "head.weight"]
BIASES = ["conv.bias", "hidden.bias", "head.bias"]
AFFINE = [f"{norm}.{kind}" for norm in ("block.0", "group", "layer") for kind in ("weight", "bias")]
X = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def learned(view: MaskView, share: float = 0.5) -> dict[str, LearnedMask]:
    return {n: LearnedMask(torch.randn_like(w), int(share * w.numel()), Weight()) for n, w in view.weights().items()}


def fixed(view: MaskView) -> dict[str, FixedMask]:
    return {name: FixedMask(torch.rand_like(weight) < 0.4) for name, weight in view.weights().items()}


def masked(make=learned) -> MaskView:
    view = MaskView(Net())
    view.attach(make(view))
    return view


def test_prunable_are_the_weights_of_convolutions_and_linear_layers():
    view = MaskView(Net())
    assert list(view.weights()) == list(view.modules) == WEIGHTS
    assert view.masks() == view.sources == {}
    assert list(MaskView(nn.Conv2d(1, 1, 1)).weights()) == ["weight"]


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(PruningError, match="BatchNorm2d has no convolution, linear layer or attention"):
        MaskView(nn.BatchNorm2d(3))


@pytest.mark.parametrize("make", [learned, fixed])
def test_everyone_sees_the_masked_weight(make):
    view = masked(make)
    for name, (module,) in view.modules.items():
        mask, stored = view.masks()[name], view.weights()[name]
        assert 0 < int(mask.sum()) < mask.numel()
        assert stored.all()
        assert torch.equal(module.weight, stored * mask)
        assert module.bias is None or module.bias.all()


@pytest.mark.parametrize(
    ("over", "train_norm", "moving"),
    [
        ("weights", True, [*WEIGHTS, *BIASES, *AFFINE, "temperature"]),
        ("weights", False, [*WEIGHTS, *BIASES, *AFFINE, "temperature"]),
        ("scores", True, [*(f"score:{name}" for name in WEIGHTS), *AFFINE]),
        ("scores", False, [f"score:{name}" for name in WEIGHTS]),
    ],
)
def test_a_stage_moves_its_tensors_and_no_others(over, train_norm, moving):
    view = masked()
    for earlier in ("scores", "weights"):  # whatever an earlier stage has set
        view.train(earlier)
        chosen = view.train(over, train_norm=train_norm)
        assert sorted(name for name, _ in chosen) == sorted(moving)
        ids = {id(parameter) for _, parameter in chosen}
        assert len(ids) == len(chosen)
        assert all(p.requires_grad == (id(p) in ids) for p in view.model.parameters())
        view.model(X).square().sum().backward()
        assert all((p.grad is not None) == (id(p) in ids) for p in view.model.parameters())
        view.model.zero_grad()


def test_the_parameters_of_a_dense_model_are_all_of_them():
    net = Net()
    assert [n for n, _ in MaskView(net).train("weights")] == [n for n, _ in net.named_parameters()]


@pytest.mark.parametrize("make", [fixed, lambda view: {}])
def test_without_scores_there_is_nothing_to_train_over(make):
    with pytest.raises(PruningError, match=r"no scores to train.*epochs: 0"):
        masked(make).train("scores")


def test_freezing_fixes_the_masks_and_drops_the_scores():
    view = masked()
    before, out = view.masks(), view.model.eval()(X)
    view.freeze()
    assert all(torch.equal(view.masks()[name], mask) for name, mask in before.items())
    assert torch.equal(view.model(X), out)
    assert not [name for name, _ in view.model.named_parameters() if "score" in name]
    with torch.no_grad():
        view.modules["head.weight"][0].parametrizations.weight.original.add_(1)
    assert torch.equal(view.masks()["head.weight"], before["head.weight"])
    view.freeze()
    assert torch.equal(view.masks()["conv.weight"], before["conv.weight"])


def test_a_new_mask_takes_the_place_of_the_old_and_the_weight_stays():
    view = masked()
    stored = {name: weight.clone() for name, weight in view.weights().items()}
    sources = fixed(view)
    view.attach(sources)
    assert view.sources == sources
    assert all(torch.equal(view.weights()[name], weight) for name, weight in stored.items())
    assert torch.equal(view.modules["head.weight"][0].weight, stored["head.weight"] * sources["head.weight"].mask)


def test_attach_refuses_other_names_and_shapes():
    view = MaskView(Net())
    with pytest.raises(PruningError, match=r"'conv\.bias' is no prunable weight of Net"):
        view.attach({"conv.bias": FixedMask(torch.ones(4, dtype=torch.bool))})
    with pytest.raises(PruningError, match=r"mask of 'conv\.weight' has shape \(4, 1, 1, 1\), .* \(4, 1, 3, 3\)"):
        view.attach({"conv.weight": FixedMask(torch.ones(4, 1, 1, 1, dtype=torch.bool))})


def test_the_baked_network_is_plain_and_exactly_zero_where_pruned():
    view = masked()
    baked = view.bake()
    assert list(baked.state_dict()) == list(Net().state_dict())
    for name, mask in view.masks().items():
        weight = baked.get_parameter(name)
        assert torch.equal(weight, view.weights()[name] * mask)
        assert torch.equal(weight != 0, mask)
    for name in BIASES:
        assert torch.equal(baked.get_parameter(name), view.model.get_parameter(name))
    assert torch.equal(baked.eval()(X), view.model.eval()(X))


def test_counts_are_those_of_the_masks():
    view = masked()
    expected = {name: LayerCount(int(mask.sum()), mask.numel()) for name, mask in view.masks().items()}
    with torch.no_grad():
        for module in view.model.modules():
            if isinstance(module, nn.Linear):
                module.parametrizations.weight.original.zero_()  # a kept weight of value zero is kept
    assert view.counts() == expected
    assert view.count() == LayerCount(sum(c.kept for c in expected.values()), 36 + 72 + 320 + 15)
    assert MaskView(Net()).count() == LayerCount(443, 443)
    view.attach({"head.weight": FixedMask(torch.zeros(3, 5, dtype=torch.bool))})
    assert view.counts()["head.weight"] == LayerCount(0, 15)


class Shared(nn.Module):
    """One layer under two names, and two layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = self.a
        self.c = nn.Linear(4, 4)
        self.d = nn.Linear(4, 4)
        self.d.weight = self.c.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.c(self.b(self.a(x)).relu()).relu())


def test_shared_and_tied_weights_are_one():
    view = MaskView(Shared())
    assert list(view.weights()) == ["a.weight", "c.weight"]
    view.attach(learned(view, 0.25))
    assert view.count() == MaskView(view.model).count() == LayerCount(8, 32)
    assert torch.equal(view.model.d.weight, view.model.c.weight)
    assert int((view.model.d.weight != 0).sum()) == 4
    names = [name for name, _ in view.train("weights")]
    assert sorted(names) == ["a.bias", "a.weight", "c.bias", "c.weight", "d.bias"]
    assert [name for name, _ in view.train("scores")] == ["score:a.weight", "score:c.weight"]
    view.freeze()
    assert torch.equal(view.model.d.weight, view.model.c.weight)
    x = torch.rand(3, 4)
    assert torch.equal(view.bake()(x), view.model(x))


def test_deep_copies_are_pruned_and_frozen_apart():
    view = masked()
    twin = MaskView(copy.deepcopy(view.model))
    before = view.masks()
    twin.freeze()
    twin.attach({name: FixedMask(~mask) for name, mask in before.items()})
    twin.bake()
    assert all(torch.equal(view.masks()[name], mask) for name, mask in before.items())
    assert view.model(X).shape == twin.model(X).shape
    assert len(view.train("scores")) == len(WEIGHTS) + len(AFFINE)


def test_exempt_layers_are_never_masked_and_are_counted():
    for patterns, left in (
        ([], WEIGHTS),
        (["first"], WEIGHTS[1:]),
        (["first", "last"], WEIGHTS[1:3]),
        (["block.*", "head.weight"], ["conv.weight", "hidden.weight"]),
    ):
        view = MaskView(Net(), exempt=patterns)
        assert list(view.weights()) == left
        view.attach({name: FixedMask(torch.zeros_like(weight) > 0) for name, weight in view.weights().items()})
        exempt = {name for name in WEIGHTS if name not in left}
        assert {name for name, count in view.counts().items() if count.kept} == exempt
        assert view.count().total == 443
        assert MaskView(view.model).count() == view.count()
        moving = [name for name, _ in view.train("weights")]
        assert {*moving} >= {*WEIGHTS}
    with pytest.raises(PruningError, match=r"no prunable layer is called 'haed'; did you mean 'head'\?"):
        MaskView(Net(), exempt=["haed"])


@pytest.mark.parametrize(
    ("normalize", "by"),
    [
        (nn.utils.parametrizations.spectral_norm, "_SpectralNorm"),
        (nn.utils.parametrizations.weight_norm, "_WeightNorm"),
        (nn.utils.spectral_norm, "a hook"),
    ],
)
def test_weights_that_something_else_computes_are_refused(normalize, by):
    net = Net()
    normalize(net.block[2])
    with pytest.raises(
        PruningError, match=rf"the weight of layer 'block\.2' is computed by {by}, such as spectral .*remove"
    ):
        MaskView(net)
