"""The built-in networks: published counts, tracing, image sizes, initialisation."""

import math

import pytest
import torch
from torch import fx, nn

from hydraprune.core.errors import SpecError
from hydraprune.core.twin import foldable
from hydraprune.nets import Net, names
from hydraprune.nets.wide_resnet import WideResNet

LEAST = {"cnn_medium": 8, "vgg16_bn": 16, "resnet18": 8, "resnet34": 8, "cnn7_bn": 2}
"""Smallest side; 4 for all others."""


def build(kind, num_classes=10, in_channels=3, image_size=32, **options):
    with torch.device("meta"):  # shapes alone: no time spent on random numbers
        return Net(kind=kind, options=options).build(num_classes, in_channels, image_size)


def layers(model):
    return [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


# Counted on the authors' published nets; wrn without and with their unused group.
COUNTS = [
    ("vgg16_bn", {}, 15_311_818, 15_302_848, 16),
    ("vgg4", {}, 459_466, 458_944, 7),
    ("vgg4_bn", {}, 460_234, 458_944, 7),
    ("vgg4_without_maxpool", {}, 2_425_930, 2_425_024, 7),
    ("wrn_28_4", {}, 5_849_050, 5_841_840, 29),
    ("wrn_28_4", {"legacy_dead_block": True}, 6_118_266, 6_110_128, 38),
    ("wrn_28_10", {}, 36_479_194, 36_461_232, 29),
    ("wrn_28_10", {"legacy_dead_block": True}, 38_119_866, 38_099_632, 38),
    ("resnet18", {}, 11_173_962, 11_164_352, 21),
    ("resnet34", {}, 21_282_122, 21_265_088, 37),
    ("cnn_small", {}, 214_918, 214_760, 4),
    ("cnn_medium", {}, 353_794, 352_776, 7),
    ("cnn_large", {}, 2_466_858, 2_465_632, 7),
    ("timm:resnet18", {"num_classes": 1000}, 11_689_512, 11_678_912, 21),
    ("timm:resnet50", {"num_classes": 1000}, 25_557_032, 25_502_912, 54),
]


@pytest.mark.parametrize(("kind", "options", "parameters", "prunable", "depth"), COUNTS)
def test_counts_are_the_published_ones(kind, options, parameters, prunable, depth):
    model = build(kind, **options)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(layer.weight.numel() for layer in layers(model)) == prunable
    assert len(layers(model)) == depth


def test_counts_of_the_deeper_wide_net():
    whole = build("wrn_34_10", legacy_dead_block=True)
    assert sum(p.numel() for p in whole.parameters()) == 48_262_586
    assert sum(layer.weight.numel() for layer in layers(build("wrn_34_10"))) == 46_138_032


@pytest.mark.parametrize(("kind", "parameters"), [("cnn_small", 166_406), ("cnn_large", 1_974_762)])
def test_the_mnist_nets_are_the_same_nets_on_28_pixels_of_one_channel(kind, parameters):
    assert sum(p.numel() for p in build(kind, in_channels=1, image_size=28).parameters()) == parameters


@pytest.mark.parametrize(("side", "prunable"), [(8, 28_048), (16, 35_728)])
def test_the_digits_net_is_small_and_every_norm_folds(side, prunable):
    model = build("cnn_digits", in_channels=1, image_size=side)
    assert sum(layer.weight.numel() for layer in layers(model)) == prunable
    assert len(foldable(model)) == 4


@pytest.mark.parametrize("kind", names())
@pytest.mark.parametrize(("side", "channels"), [(4, 1), (8, 1), (16, 3), (28, 1), (33, 3)])
def test_every_size_works_or_is_refused_with_the_least_that_does(kind, side, channels):
    least = LEAST.get(kind, 4)
    if side < least:
        with pytest.raises(SpecError, match=rf"{kind} cannot take {side}x{side} .* at least {least}x{least}"):
            build(kind, 7, channels, side)
    else:
        model = build(kind, 7, channels, side)
        assert model(torch.empty(2, channels, side, side, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("kind", names())
def test_below_the_least_side_is_refused(kind):
    with pytest.raises(SpecError, match="at least"):
        build(kind, image_size=LEAST.get(kind, 4) - 1)


@pytest.mark.parametrize("kind", names())
def test_traces_into_plain_operations(kind):
    with torch.device("meta"):
        model = Net(kind=kind, normalize="cifar10").build(10)
    traced = fx.symbolic_trace(model)
    called = {type(traced.get_submodule(node.target)) for node in traced.graph.nodes if node.op == "call_module"}
    known = {nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Flatten}
    assert called <= known | {nn.BatchNorm1d}
    assert {nn.Conv2d, nn.Linear, nn.ReLU} <= called
    functions = {node.target.__name__ for node in traced.graph.nodes if node.op == "call_function"}
    assert functions <= {"sub", "truediv", "add"}
    assert not [node for node in traced.graph.nodes if node.op == "call_method"]


@pytest.mark.parametrize("kind", ["cnn_digits", "cnn_small", "cnn_large", "vgg4", "vgg4_bn", "vgg4_without_maxpool"])
def test_gradients_reach_every_parameter_and_a_state_dict_round_trips(kind):
    torch.manual_seed(0)
    spec = Net(kind=kind, normalize={"mean": [0.3], "std": [0.35]})
    model, x = spec.build(10, 1, 8), torch.rand(4, 1, 8, 8)
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    twin = spec.build(10, 1, 8)
    assert not torch.equal(twin.eval()(x), model.eval()(x))
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(x), model(x))


def test_the_dead_block_gets_no_gradient():
    model = Net(kind="wrn_28_4", options={"legacy_dead_block": True}).build(10, 1, 8)
    model(torch.rand(2, 1, 8, 8)).sum().backward()
    dead = {name for name, p in model.named_parameters() if p.grad is None}
    assert dead == {name for name, _ in model.named_parameters() if name.startswith("sub_block1.")}


def test_initialisation():
    torch.manual_seed(0)
    wide, vgg = Net(kind="wrn_28_4").build(10), Net(kind="vgg4_bn").build(10)
    for conv in [wide.block3.layer[1].conv1, wide.block2.layer[0].convShortcut, vgg.features[3]]:
        fan_out = conv.out_channels * conv.kernel_size[0] ** 2
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.02)
    head = vgg.classifier[0]
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not head.bias.any()


@pytest.mark.parametrize("kind", ["vgg4", "vgg4_bn"])
def test_vgg_heads_see_averages_of_2x2_quarters(kind):
    torch.manual_seed(0)
    model, x = Net(kind=kind).build(10).eval(), torch.rand(2, 3, 32, 32)
    quarters = model.features(x).view(2, 128, 2, 4, 2, 4).mean((3, 5))
    torch.testing.assert_close(model(x), model.classifier(quarters.flatten(1)))


def test_wide_resnets_of_any_depth_and_width():
    small = Net(kind="wrn_10_1").build(10, 3, 32)
    assert len(layers(small)) == 1 + 3 * 2 + 2 + 1  # the stem, three blocks, two shortcuts, the classifier
    assert sum(layer.weight.numel() for layer in layers(small)) == (
        3 * 16 * 9 + 2 * 16 * 16 * 9 + (16 + 32) * 32 * 9 + 16 * 32 + (32 + 64) * 64 * 9 + 32 * 64 + 640
    )
    wide = [(name, tuple(tensor.shape)) for name, tensor in Net(kind="wrn_28_4").build(10).state_dict().items()]
    assert wide == [(name, tuple(t.shape)) for name, t in WideResNet(28, 4, 10, 3).state_dict().items()]
    for kind, why in (("wrn_29_4", "no WRN-29-4; the depth is 10, 16"), ("wrn_4_1", "no WRN-4-1")):
        with pytest.raises(SpecError, match=why):
            Net(kind=kind).build(10)
    for kind in ("wrn_28_0", "wrn_028_4", "wrn_28", "wrn_28_4_2", "wrn_1000_1"):
        with pytest.raises(SpecError, match=f"unknown net '{kind}'"):
            Net(kind=kind)
