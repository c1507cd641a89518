"""Networks without their removed channels: the same logits, layer by layer smaller."""

import copy
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hydraprune as hp
from hydraprune.core.errors import CheckpointError, PruningError, SpecError
from hydraprune.masks.coupling import coupled_channels
from hydraprune.masks.resized import resize
from hydraprune.masks.shrink import shrink
from masks.coupled_nets import NETS, Residual, apart, lively, without

IMAGE = (3, 32, 32)


@cache
def first(net):
    return lively(NETS[net]())


def made(net):
    return copy.deepcopy(first(net))


def shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("share", [0.5, 0.75, 0.9])
@pytest.mark.parametrize("net", NETS)
def test_without_removed_channels_the_logits_are_the_same(net, share):
    model = made(net)
    left, before = without(model, share, IMAGE), copy.deepcopy(model.state_dict())
    small, x = shrink(model, IMAGE), torch.rand(2, *IMAGE)
    assert apart(model, small, x) <= 1e-5
    sizes = shapes(small)
    for name, (few, every) in left.items():
        each = before[name].shape[0] // every  # more than one where they are grouped
        assert 1 <= sizes[name][0] <= each * few  # fewer if all that read a channel are dead themselves
    assert sizes.keys() == before.keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    with torch.device("meta"):
        fresh = NETS[net]()
    resize(fresh, sizes, IMAGE)
    fresh.load_state_dict(small.state_dict(), assign=True)
    assert apart(fresh.eval(), small, x) == 0


@pytest.mark.parametrize("net", ["vgg16_bn", "resnet18", "cnn_large", "timm:mobilenetv3"])
def test_single_weights_that_happen_to_take_channels_along(net):
    model = made(net)
    hp.prune(model, "random", 0.995)
    small = shrink(model, IMAGE)
    assert apart(model, small, torch.rand(2, *IMAGE)) <= 1e-5
    before = shapes(hp.MaskView(model).bake())
    assert any(shape != before[name] for name, shape in shapes(small).items())


def planted():
    """A residual net of which stem channel 2, inner 1 and 4, deep 0 and outer 5 are dead, each in another way."""
    model = lively(Residual())
    with torch.no_grad():
        for reader in (model.inner, model.deep, model.beside):
            reader.weight[:, 2] = 0  # nobody reads stem 2
        model.back.weight[:, 1] = 0  # nor inner 1
        model.inner.weight[4] = model.inner.bias[4] = 0
        model.inner_norm.bias[4], model.inner_norm.running_mean[4] = -0.5, 0  # which ReLU makes 0
        model.deep.weight[0] = model.deep.bias[0] = model.deep_norm.bias[0] = model.deep_norm.running_mean[0] = 0
        model.head.weight[:, 45:] = 0
    return model


def test_it_is_the_network_that_was_built_small_by_hand():
    model = planted()
    stem, inner, deep, outer = ([0, 1, 3], [0, 2, 3], [1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4])
    hand = Residual(3, 3, 5, 6).eval()
    own = model.state_dict()
    ends = {
        "stem": (stem, [0]), "inner": (inner, stem), "back": (stem, inner), "deep": (deep, stem),
        "outer": (outer, deep), "beside": (outer, stem), "norm": (stem, None), "inner_norm": (inner, None),
        "deep_norm": (deep, None), "head": ([0, 1, 2], list(range(45))),
    }  # fmt: skip
    taken = {}
    for name, tensor in own.items():
        outputs, inputs = ends[name.partition(".")[0]]
        tensor = tensor[outputs] if tensor.dim() else tensor
        taken[name] = tensor[:, inputs] if tensor.dim() > 1 else tensor
    hand.load_state_dict(taken)
    small = shrink(model, (1, 6, 6))
    assert shapes(small) == shapes(hand)
    assert all(torch.equal(value, hand.state_dict()[name]) for name, value in small.state_dict().items())
    assert apart(model, small, torch.rand(4, 1, 6, 6)) <= 1e-6
    for one, other in zip(small.modules(), hand.modules(), strict=True):
        assert repr(one) == repr(other)


def test_in_a_residual_stream_all_must_agree_and_a_constant_stays():
    model = lively(Residual())
    with torch.no_grad():
        model.inner.weight[:, 2] = model.deep.weight[:, 2] = 0  # but `beside` reads it
        model.back.weight[1] = model.back.bias[1] = 0  # but the stem makes it
        model.inner.weight[3] = 0
        model.inner_norm.bias[3] += 5  # constant, and not 0
    assert shapes(shrink(model, (1, 6, 6))) == shapes(model)


def test_a_constant_that_differs_at_the_border_is_none():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    model = lively(model)
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0] = 0, 1  # constant
        model[1].weight[1] = 0
        model[1].weight[1, 0], model[1].bias[1] = -1, 6.5  # below 0 but where zeros stand beside it
        model[1].weight[0, 0] = 0
    small = shrink(model, (1, 4, 4))
    assert shapes(small) == shapes(model)


def test_what_only_the_dead_read_is_dead_and_one_channel_stays():
    model = lively(Residual())
    with torch.no_grad():
        model.outer.weight.zero_()
    small = shrink(model, (1, 6, 6))
    assert shapes(small)["deep.weight"] == (1, 4, 3, 3)
    assert shapes(small)["inner.weight"] == (5, 4, 3, 3)
    assert apart(model, small, torch.rand(4, 1, 6, 6)) <= 1e-6
    with torch.no_grad():
        model.beside.weight.zero_()
    small = shrink(model, (1, 6, 6))
    assert shapes(small)["stem.weight"] == (1, 1, 3, 3)
    assert apart(model, small, torch.rand(4, 1, 6, 6)) <= 1e-6


class Twice(nn.Module):
    """The same layer called twice, or one weight in two layers, of which one may be idle."""

    def __init__(self, tied):
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.head, self.tied = nn.Linear(4, 3), tied
        if tied:
            self.third.weight = self.second.weight

    def forward(self, x):
        x = self.second(self.first(x)).relu()
        x = self.third(x) if self.tied == "tied" else self.second(x) if not self.tied else x
        return self.head(x.mean((2, 3)))


class Odd(nn.Module):
    """Something between a convolution and the head that channels cannot be followed through, or counts them."""

    def __init__(self, between, features=4):
        super().__init__()
        self.conv, self.between, self.head = nn.Conv2d(1, 4, 1), between, nn.Linear(features, 3)

    def forward(self, x):
        return self.head(self.between(self.conv(x)))


class Call(nn.Module):
    """A function as a module that is traced."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.function(self, x)


MIXED = {
    "layer norm": (lambda m, x: m.norm(x.mean((2, 3))), {"norm": nn.LayerNorm(4)}, "norm"),
    "softmax": (lambda m, x: x.softmax(1).mean((2, 3)), {}, "softmax"),
    "a size as a number": (lambda m, x: x.mean((2, 3)).view(-1, 4), {}, "view"),
    "half of the channels": (lambda m, x: x.chunk(2, 1)[0].mean((2, 3)).repeat(1, 2), {}, "chunk"),
    "a slice": (lambda m, x: x[:, [3, 2, 1, 0]].mean((2, 3)), {}, "getitem"),
    "squeeze": (lambda m, x: x.mean((2, 3), keepdim=True).squeeze(), {}, "squeeze"),
    "a sum over channels": (lambda m, x: x.sum(1).flatten(1)[:, :4], {}, "sum"),
    "attention": (lambda m, x: m.a(x.flatten(2).mT, x.flatten(2).mT, x.flatten(2).mT)[0].mean(1),
                  {"a": nn.MultiheadAttention(4, 2, batch_first=True)}, "mix"),
    "one for all": (lambda m, x: (x * m.gate(x.detach())).mean((2, 3)), {"gate": nn.Softmax2d()}, "Softmax2d"),
}  # fmt: skip


@pytest.mark.parametrize("what", MIXED)
def test_what_mixes_channels_keeps_them_and_says_so(what):
    function, modules, word = MIXED[what]
    model = lively(Odd(Call(function, **modules)))
    with torch.no_grad():
        model.head.weight[:, 1] = 0
    (first, *_) = coupled_channels(model, (1, 4, 4)).sets
    assert first.name == "conv.weight"
    assert word in first.reason
    small = shrink(model, (1, 4, 4))
    assert shapes(small) == shapes(model)


@pytest.mark.parametrize("tied", ["", "tied", "idle"])
def test_a_weight_that_is_used_twice_keeps_its_channels(tied):
    model = lively(Twice(tied))
    with torch.no_grad():
        model.head.weight[:, 1] = 0
    reasons = {each.name: each.reason for each in coupled_channels(model, (1, 4, 4)).sets}
    assert "'second.weight' is one of their tensors" in reasons["first.weight"]
    assert ("'third.weight' as well" if tied else "uses it twice") in reasons["first.weight"]
    assert shapes(shrink(model, (1, 4, 4)))["second.weight"] == (4, 4, 1, 1)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 1), nn.Linear(4, 3)

    def forward(self, x):
        x = self.conv(x)
        return self.head(x.mean((2, 3)) / x.shape[1])


def test_a_forward_that_counts_its_channels_is_refused():
    model = lively(Scaled())
    with torch.no_grad():
        model.head.weight[:, 1] = 0
    with pytest.raises(PruningError, match=r"Scaled computes something else with fewer channels"):
        shrink(model, (1, 4, 4))


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "image", "words"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 1), Branching()), (1, 4, 4), r"Branching\) cannot be traced"),
        (nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 2)), (1, 4, 4), r"does not take an image of"),
        (nn.Sequential(nn.Conv2d(1, 2, 1)), (1, 4), r"image_shape is .*; give channels, height and width"),
        (nn.Sequential(nn.Conv2d(1, 2, 1)), (1, 0, 4), "image_shape"),
    ],
)
def test_what_cannot_be_followed_is_one_clear_error(model, image, words):
    with pytest.raises(SpecError, match=words):
        shrink(model, image)


def test_masks_are_multiplied_in_and_modes_and_flags_stay():
    model = planted().train()
    model.norm.weight.requires_grad_(False)
    hp.prune(model, "magnitude", 0.5)
    small = shrink(model, (1, 6, 6))
    assert small.training
    assert not small.norm.weight.requires_grad
    assert small.inner.weight.requires_grad
    assert not hasattr(small.back, "parametrizations")
    assert apart(model.eval(), small.eval(), torch.rand(2, 1, 6, 6)) <= 1e-6


class Kinds(nn.Module):
    """Groups, transposed and one-dimensional convolutions, norms of groups and images, a gate, a concatenation."""

    def __init__(self):
        super().__init__()
        self.stem, self.depth = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 12, 3, padding=1, groups=6)
        self.norm, self.grouped = nn.GroupNorm(6, 12), nn.Conv2d(12, 8, 3, groups=4)
        self.up, self.alone = nn.ConvTranspose2d(8, 5, 2, stride=2), nn.InstanceNorm2d(5, affine=True)
        self.squeeze, self.excite = nn.Linear(5, 3), nn.Linear(3, 5)
        self.side, self.line, self.head = nn.Conv2d(2, 4, 1), nn.Conv1d(9, 6, 3), nn.Linear(6, 3)

    def forward(self, x):
        y = self.alone(self.up(self.grouped(self.norm(self.depth(self.stem(x).relu())).relu())))
        gate = self.excite(self.squeeze(y.mean((2, 3))).relu()).sigmoid()
        y = y * gate[:, :, None, None]
        y = torch.cat([y, self.side(x)], 1)
        b, c, h, w = y.shape
        return self.head(self.line(y.view(b, c, h * w)).amax(2))


@pytest.mark.parametrize("share", [0.3, 0.6, 1.0])
def test_layers_of_every_kind(share):
    model, image = lively(Kinds()), (2, 4, 4)
    sets = {each.name: len(each.channels) for each in coupled_channels(model, image).removable()}
    # Of the stem, its depthwise convolution and a norm of pairs, as many as a grouped convolution has groups.
    assert sets == {"stem.weight": 2, "up.weight": 5, "squeeze.weight": 3, "side.weight": 4, "line.weight": 6}
    without(model, share, image)
    small = shrink(model, image)
    assert apart(model, small, torch.rand(2, *image)) <= 1e-5
    fresh = Kinds()
    resize(fresh, shapes(small), image)
    assert [repr(m) for m in fresh.modules()] == [repr(m) for m in small.modules()]


@st.composite
def networks(draw):
    """A random network of steps on a list of tensors (B, C, 4, 4) as a module."""
    steps, widths, modules = [], [2], {}
    for number in range(draw(st.integers(2, 8))):
        at = draw(st.integers(0, len(widths) - 1))
        kind = draw(st.sampled_from(["conv", "conv", "depth", "norm", "relu", "add", "mul", "cat", "pool", "gelu"]))
        other, width = at, widths[at]
        if kind == "conv":
            width = draw(st.integers(1, 5))
            bias, side = draw(st.booleans()), draw(st.sampled_from([1, 3]))
            modules[str(number)] = nn.Conv2d(widths[at], width, side, padding=side // 2, bias=bias)
        elif kind == "depth":
            modules[str(number)] = nn.Conv2d(width, width, 3, padding=1, groups=width)
        elif kind == "norm":
            modules[str(number)] = nn.BatchNorm2d(width)
        elif kind in ("add", "mul"):
            other = draw(st.sampled_from([i for i, w in enumerate(widths) if w == width]))
        elif kind == "cat":
            other = draw(st.integers(0, len(widths) - 1))
            width += widths[other]
        steps.append((kind, str(number), at, other))
        widths.append(width)
    modules["head"] = nn.Linear(16 * widths[-1], 3)
    return Drawn(steps, modules)


class Drawn(nn.Module):
    def __init__(self, steps, modules):
        super().__init__()
        self.steps, self.layers = steps, nn.ModuleDict(modules)

    def forward(self, x):
        values = [x]
        for kind, name, at, other in self.steps:
            one = values[at]
            if name in self.layers:
                one = self.layers[name](one)
            elif kind == "relu":
                one = one.relu()
            elif kind == "gelu":
                one = nn.functional.gelu(one)
            elif kind == "pool":
                one = nn.functional.avg_pool2d(one, 3, 1, 1)
            elif kind == "cat":
                one = torch.cat([one, values[other]], 1)
            else:
                one = one + values[other] if kind == "add" else one * values[other]
            values.append(one)
        return self.layers["head"](values[-1].flatten(1))


@settings(max_examples=40, deadline=None)
@given(networks(), st.integers(0, 9), st.floats(0.2, 0.9), st.booleans())
def test_any_small_network_keeps_its_logits(model, seed, share, single):
    model = lively(model, seed)
    if single:
        with torch.no_grad():
            for tensor in model.parameters():  # biases and norms too, so that some channels are 0 or constant
                tensor.mul_(torch.rand(tensor.shape) > share)
    else:
        without(model, share, (2, 4, 4), seed)
    small, x = shrink(model, (2, 4, 4)), torch.rand(3, 2, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x), rtol=1e-4, atol=1e-5)


def small_shapes():
    return shapes(shrink(planted(), (1, 6, 6)))


BAD = {
    "larger": ({"stem.weight": (5, 1, 3, 3)}, r"'stem.weight' is \(5, 1, 3, 3\) there and \(4, 1, 3, 3\)"),
    "huge": ({"stem.weight": (2**62, 1, 3, 3)}, "'stem.weight' is"),
    "none": ({"stem.weight": (0, 1, 3, 3)}, "'stem.weight' is"),
    "negative": ({"stem.weight": (-1, 1, 3, 3)}, "'stem.weight' is"),
    "of another kernel": ({"inner.weight": (3, 3, 1, 3)}, r"'inner.weight' is .*; only channels can be fewer"),
    "of other axes": ({"stem.weight": (3, 1, 3)}, "'stem.weight' is"),
    "with another bias": ({"inner.bias": (2,)}, r"'inner.bias' is \(2,\) and 'inner.weight' is .* they do not fit"),
    "with another norm": ({"norm.running_var": (2,)}, r"'norm.running_var' is \(2,\) and 'norm.weight' is"),
    "of layers that do not fit": (
        {"inner.weight": (3, 2, 3, 3)}, "its layers do not fit together"),
    "unknown": ({"more.weight": (1,)}, "more.weight is in one of network and checkpoint only"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_sizes_that_cannot_be_are_refused_by_name(what, device):
    changes, words = BAD[what]
    with torch.device(device):
        model = Residual()
    with pytest.raises(CheckpointError, match=words):
        resize(model, small_shapes() | changes, (1, 6, 6))


def test_groups_stay_whole_and_other_tensors_as_they_are():
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(2, 4, 1, groups=2), nn.GroupNorm(2, 4), nn.Flatten(), nn.LayerNorm(4))
    given = shapes(model)
    for name, shape in (("0.weight", (3, 1, 1, 1)), ("1.weight", (3,)), ("3.weight", (2,))):
        others = {other: shape for other in ("1.bias",) if name == "1.weight"}
        with pytest.raises(CheckpointError, match=name):
            resize(model, given | others | {name: shape}, (2, 1, 1))


def test_a_sketch_takes_the_sizes_without_memory():
    with torch.device("meta"):
        model = Residual()
    resize(model, small_shapes(), (1, 6, 6))
    assert shapes(model) == small_shapes()
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    small = shrink(planted(), (1, 6, 6))
    model.load_state_dict(small.state_dict(), assign=True)
    assert apart(model.eval(), small, torch.rand(2, 1, 6, 6)) == 0
