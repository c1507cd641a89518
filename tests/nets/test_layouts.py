"""Layouts of others, against their networks written by hand."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hydraprune.core.errors import CheckpointError, SpecError
from hydraprune.nets import Net
from hydraprune.nets.foreign import fitted, load_weights
from hydraprune.nets.layouts import ALPHA, FLOOR, LAYOUTS, largest, plain


def small():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5))


def state_of(net, **more):
    return {**net.state_dict(), **more}


def logits(tensors, x):
    net = small()
    net.load_state_dict(tensors)
    return net.eval()(x)


def scores(net):
    return {f"{layer}.popup_scores": torch.randn_like(net[layer].weight) for layer in (0, 3)}


def smallest_removed(weight, score, removed):
    """By a sort in Python."""
    flat = weight.flatten().tolist()
    for place in sorted(range(len(flat)), key=lambda i: (abs(score.flatten()[i].item()), i))[:removed]:
        flat[place] = 0.0
    return torch.tensor(flat).view_as(weight)


def test_harp_s_layers_keep_what_their_rates_say():
    """Rates and masks are written out as its code computes them."""
    net, keep = small(), 0.1
    rates = {0: 1.3, 3: -2.0}
    state = state_of(net, **scores(net), **{f"{layer}.k_score": torch.tensor(rate) for layer, rate in rates.items()})
    found = plain(state, net.state_dict(), "it", keep=keep)
    expected = net.state_dict()
    for layer, rate in rates.items():
        share = ALPHA * keep + (1 - ALPHA * keep) / (1 + math.exp(-rate))
        weight = net[layer].weight.detach()
        removed = int((1 - share) * weight.numel())
        expected[f"{layer}.weight"] = smallest_removed(weight, state[f"{layer}.popup_scores"], removed)
        assert int((~found.masks[f"{layer}.weight"]).sum()) == removed
    assert (found.layout, found.pruner) == ("harp", "harp")
    assert any("alpha" in note for note in found.notes)
    x = torch.rand(4, 3, 4, 4)
    torch.testing.assert_close(logits(found.tensors, x), logits(expected, x), rtol=0, atol=0)


def test_harp_s_channels_are_those_of_the_input():
    net = small()
    one = torch.tensor([[[[0.1]], [[-0.9]], [[0.5]]]])
    rows = torch.arange(128.0).view(1, 128)
    rate = torch.tensor(0.0)  # half, and a little
    state = state_of(net, **{"0.popup_scores": one, "3.popup_scores": rows, "0.k_score": rate, "3.k_score": rate})
    masks = plain(state, net.state_dict(), "it", "harp", 0.2).masks
    assert masks["0.weight"].shape == net[0].weight.shape
    assert masks["0.weight"].all(0).all(-1).all(-1).tolist() == [False, True, True]
    assert masks["0.weight"].any(0).any(-1).any(-1).tolist() == [False, True, True]
    kept = round((0.02 + 0.98 / 2) * 128)
    assert masks["3.weight"][0].nonzero().flatten().tolist() == [*range(128 - kept, 128)]
    dense = plain(state, net.state_dict(), "it", "harp", 1).tensors
    assert torch.equal(dense["0.weight"], net[0].weight)


def test_mad_s_factors_are_multiplied_in():
    net = small()
    low = math.log(math.exp(FLOOR) - 1)
    factor = {
        name: torch.where(torch.rand_like(tensor) < 0.5, low, 0.5 + torch.rand_like(tensor))
        for name, tensor in net.state_dict().items()
    }
    named = {f"{name[0]}.mask_{name[2:]}": tensor for name, tensor in factor.items()}
    found = plain(state_of(net, **named), net.state_dict(), "it")
    assert (found.layout, found.pruner) == ("benchmark", "mad")
    x = torch.rand(4, 3, 4, 4)
    theirs = logits({name: tensor * F.softplus(factor[name]) for name, tensor in net.state_dict().items()}, x)
    torch.testing.assert_close(logits(found.tensors, x), theirs, rtol=0, atol=1e-3)  # the floor is 0 here
    assert torch.equal(found.masks["3.weight"], factor["3.weight"] > 0)
    assert any(note.startswith(f"guessed: {sum(int((f < 0).sum()) for f in factor.values())} ") for note in found.notes)


class Pwoa(nn.Module):
    """VGG-16 as PwoA's authors lay it out."""

    def __init__(self):
        super().__init__()
        inputs = 3
        for layer, (count, outputs) in enumerate(zip((2, 2, 3, 3, 3), (64, 128, 256, 512, 512), strict=True), 1):
            parts = []
            for _ in range(count):
                parts.append(
                    nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())
                )
                inputs = outputs
            self.add_module(
                f"layer{layer}", nn.Sequential(*parts, nn.AdaptiveAvgPool2d(2) if layer == 5 else nn.MaxPool2d(2))
            )
        self.layer6 = nn.Sequential(nn.Linear(2048, 256), nn.ReLU())
        self.layer7 = nn.Sequential(nn.Linear(256, 256), nn.ReLU())
        self.layer8 = nn.Linear(256, 10)

    def forward(self, x):
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4, self.layer5):
            x = layer(x)
        return self.layer8(self.layer7(self.layer6(x.flatten(1))))


def test_pwoa_s_biases_go_into_the_batch_norms():
    theirs, ours = Pwoa().eval(), Net(kind="vgg16_bn").build(10).eval()
    state = theirs.state_dict()
    for name in state:
        if name.endswith(("bias", "running_mean")):
            state[name] = torch.randn_like(state[name])
    theirs.load_state_dict(state)
    found = fitted(plain(state, ours.state_dict(), "it"), ours.state_dict(), "it")
    ours.load_state_dict(found.tensors)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = theirs(x)
        torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=float(1e-4 * expected.abs().max()))
    with pytest.raises(CheckpointError, match=r"no whole VGG-16 of PwoA: features\.0 has no bias"):
        plain({name: t for name, t in state.items() if name != "layer1.0.0.bias"}, (), "it")


@pytest.mark.parametrize(
    "names", [("mu", "sigma"), ("mean", "std"), ("normalize.mean", "normalize.std"), ("0.mean", "0.std")]
)
def test_constants_in_a_file_are_those_of_the_network(names):
    net = small()
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1), torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)
    prefix = "1." if names[0] == "0.mean" else ""
    state = {f"{prefix}{name}": t for name, t in net.state_dict().items()} | dict(zip(names, (mean, std), strict=True))
    found = plain(state, net.state_dict(), "it")
    assert found.normalize == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert found.tensors.keys() == net.state_dict().keys()
    assert plain(state, state, "it").normalize is None  # a network that has them itself


def test_a_file_s_constants_must_be_the_network_s(tmp_path):
    path = tmp_path / "a.pth"
    state = Net(kind="cnn_digits").build(10, 1, 8).state_dict()
    torch.save(state | {"mu": torch.tensor([0.5]), "sigma": torch.tensor([0.25])}, path)
    load_weights(Net(kind="cnn_digits", normalize={"mean": [0.5], "std": [0.25]}).build(10, 1, 8), path)
    for other in (None, {"mean": [0.5], "std": [0.5]}):
        model = Net(kind="cnn_digits", normalize=other).build(10, 1, 8)
        with pytest.raises(CheckpointError, match=r"give the net `normalize: \{mean: \[0\.5\], std: \[0\.25\]\}`"):
            load_weights(model, path)


def test_layouts_are_recognised_and_what_is_not_is_told():
    net = small()
    score = scores(net)
    rate = {"0.k_score": torch.zeros(()), "3.k_score": torch.zeros(())}

    def layout(**more):
        return plain(state_of(net, **more), net.state_dict(), "it", keep=0.5).layout

    assert layout() == "plain"
    assert layout(**score) == "hydra"
    assert layout(**score, **rate) == "harp"
    with pytest.raises(CheckpointError, match=r"holds 0\.popup_scores and 1 more of hydra and mu of robustbench; say"):
        layout(**score, mu=torch.zeros(3))
    with pytest.raises(CheckpointError, match=r"it holds 0\.k_score and 1 more, so it is harp: --format harp"):
        plain(state_of(net, **score, **rate), (), "it", "hydra", 0.5)
    with pytest.raises(CheckpointError, match=r"so it is hydra: --format hydra"):
        plain(state_of(net, **score), (), "it", "timm", 0.5)
    with pytest.raises(SpecError, match="there is no format 'hydre'; did you mean 'hydra'"):
        plain(state_of(net), (), "it", "hydre")
    assert set(LAYOUTS) == {"hydra", "harp", "benchmark", "robustbench", "torchvision", "timm"}


@pytest.mark.parametrize(
    "score",
    [torch.randn(8, 3, 3), torch.full((8, 3, 3, 3), float("nan")), torch.ones(8, 3, 3, 3, dtype=torch.int64)],
)
@pytest.mark.parametrize("rate", [{}, {"0.k_score": torch.zeros(())}])
def test_scores_that_are_none_of_the_weight_s_are_refused(score, rate):
    state = state_of(small(), **{"0.popup_scores": score}, **rate)
    with pytest.raises(CheckpointError, match=r"scores 0\.popup_scores \(.*are not finite, or not those of a weight"):
        plain(state, (), "it", keep=0.5)


@pytest.mark.parametrize("rate", [torch.zeros(2), torch.tensor(float("inf")), torch.tensor(3), None])
def test_a_rate_is_one_number(rate):
    net = small()
    rates = {"3.k_score": torch.zeros(()), **({} if rate is None else {"0.k_score": rate})}
    with pytest.raises(CheckpointError, match=r"0\.k_score is no single number"):
        plain(state_of(net, **scores(net), **rates), (), "it", keep=0.5)


def test_of_equal_scores_the_later_stays():
    assert largest(torch.tensor([0.5, -3.0, 0.5, 0.5]), 2).tolist() == [False, True, False, True]
