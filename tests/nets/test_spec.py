"""The net of a recipe: built-in, timm and imported factories, normalisation, and what each error says."""

import sys
import types

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hydraprune.core.errors import CheckpointError, SpecError
from hydraprune.nets import Net, names
from hydraprune.nets.normalize import Normalize


@pytest.fixture
def plugin(monkeypatch):
    """An importable module `plugin_nets` with factories of several signatures."""
    module = types.ModuleType("plugin_nets")

    def told(num_classes, in_channels, width=4):
        return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 64, width), nn.Linear(width, num_classes))

    def broken():
        raise ValueError("width must be even")

    def typed(num_classes, width: int = 4, sides: tuple[int, int] = (1, 1), bias: bool = True, norm: nn.Module = None):
        assert isinstance(sides, tuple)
        return nn.Linear(sides[0] * width, num_classes, bias=bias)

    def exits(num_classes):
        raise SystemExit(0)

    module.told, module.typed, module.exits = told, typed, exits
    module.untold = lambda: nn.Linear(3, 5)
    module.open = lambda **given: nn.Linear(1, given["num_classes"]) if set(given) == {"num_classes"} else None
    module.number = lambda: 3
    module.broken = broken
    module.constant = 7
    monkeypatch.setitem(sys.modules, "plugin_nets", module)


@pytest.mark.parametrize("kind", names())
def test_specs_round_trip_through_plain_values(kind):
    spec = Net(kind=kind, normalize="imagenet", options={"legacy_dead_block": True})
    assert Net.parse(spec.plain(), "net") == spec


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "vgg16bn"}, r"net.kind: unknown net 'vgg16bn'; did you mean 'vgg16_bn'\?"),
        ({"kind": ":factory"}, "net.kind: unknown net ':factory'"),
        ({"kind": "vgg4", "normalise": "cifar10"}, "unknown key 'normalise'; did you mean 'normalize'"),
        (
            {"kind": "vgg4", "normalize": "cifar"},
            "net.normalize: unknown normalisation 'cifar'; did you mean 'cifar10'",
        ),
        ({"kind": "vgg4", "normalize": {"mean": [0.5], "std": [0.5, 0.5]}}, "1 means but 2 standard deviations"),
        (
            {"kind": "vgg4", "normalize": {"mean": [123.7], "std": [0.5]}},
            r"mean.0: .*less than or equal to 1",
        ),
        ({"kind": "vgg4", "normalize": {"mean": [0.5], "std": [0]}}, r"std.0: .*greater than 0"),
    ],
)
def test_bad_settings_are_refused_with_their_path(values, message):
    with pytest.raises(SpecError, match=f"(?i){message}"):
        Net.parse(values, "net")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"kind": "wrn_28_4", "options": {"legacy_deadblock": True}},
            "no option 'legacy_deadblock'; did you mean 'legacy_dead_",
        ),
        ({"kind": "timm:resnet5"}, r"timm has no model 'resnet5'; did you mean 'timm:resnet\d+'\?"),
        ({"kind": "timm:??"}, "timm has no model '\\?\\?'; did you mean 'timm:"),
        ({"kind": "timm:resnet18", "options": {"widht": 2}}, "cannot be made with options .*widht"),
        ({"kind": "no_such_package.nets:net"}, "No module named 'no_such_package'; install the package or correct"),
        ({"kind": "plugin_nets:missing"}, "plugin_nets has no function or class 'missing'"),
        ({"kind": "plugin_nets:constant"}, "plugin_nets has no function or class 'constant'"),
        ({"kind": "plugin_nets:number"}, "gave a int; the factory must return an nn.Module"),
        ({"kind": "plugin_nets:broken"}, "cannot be made with options {}: ValueError: width must be even"),
        ({"kind": "plugin_nets:told", "options": {"widht": 2}}, "no option 'widht'; did you mean 'width'"),
        ({"kind": "plugin_nets:exits"}, "cannot be made with options {}: SystemExit: 0"),
        ({"kind": "operator:getitem"}, "net 'operator:getitem' cannot be made with options {}: TypeError"),
        ({"kind": "raising_nets:net"}, "net 'raising_nets:net' cannot be made with options {}: ZeroDivisionError"),
        ({"kind": "plugin_nets:typed", "options": {"width": "wide"}}, "options.width: Input should be a valid integer"),
        ({"kind": "plugin_nets:typed", "options": {"sides": [1]}}, r"options.sides.1: Field required"),
        ({"kind": "wrn_28_4", "options": {"legacy_dead_block": "perhaps"}}, "Input should be a valid boolean"),
        ({"kind": "vgg4", "options": {"num_classes": 10**6}}, "numbers up to 1e.06 in all; give at most 65536"),
        ({"kind": "timm:hf-hub:timm/resnet18"}, "timm would read 'hf-hub:timm/resnet18' from elsewhere.*`weights:`"),
        ({"kind": "timm:resnet18", "options": {"pretrained": True}}, "the option 'pretrained'; .* as `weights:`"),
        ({"kind": "torchvision:resnet5"}, "torchvision has no network 'resnet5' that classifies; did you mean 'resnet"),
        ({"kind": "torchvision:fcn_resnet50"}, "torchvision has no network 'fcn_resnet50' that classifies"),
        ({"kind": "torchvision:resnet18", "options": {"weights": "DEFAULT"}}, "the option 'weights'; .* as `weights:`"),
        ({"kind": "torchvision:resnet18", "options": {"width_per_group": 10**6}}, "give at most 65536"),
        ({"kind": "builtins:dict", "options": {"a": 1}}, "net 'builtins:dict'"),
        (
            {"kind": "vgg4", "normalize": {"mean": [0.5], "std": [0.5]}},
            "normalize has 1 means, the images 3 channels; give one each",
        ),
    ],
)
@pytest.mark.usefixtures("plugin")
def test_what_cannot_be_built_is_a_spec_error(tmp_path, monkeypatch, settings, message):
    (tmp_path / "raising_nets.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SpecError, match=message) as caught:
        Net(**settings).build(10)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("plugin")
def test_factories_are_told_what_their_signature_names():
    told = Net(kind="plugin_nets:told", options={"width": 6}).build(5, 2, 8)
    assert told(torch.rand(3, 2, 8, 8)).shape == (3, 5)
    assert told[1].out_features == 6
    assert Net(kind="plugin_nets:untold").build(10).out_features == 5
    assert Net(kind="plugin_nets:open").build(9, 1, 8).out_features == 9


@pytest.mark.usefixtures("plugin")
def test_options_have_the_types_that_the_factory_annotates():
    """What pydantic has never heard of stays as it is."""
    options = {"width": 3, "sides": [2, 5], "bias": False, "norm": "any"}
    net = Net(kind="plugin_nets:typed", options=options).build(10)
    assert (net.in_features, net.bias) == (6, None)


@pytest.mark.parametrize("kind", [*names(), "timm:resnet18", "timm:vit_tiny_patch16_224", "torchvision:resnet18"])
def test_a_sketch_has_the_tensors_of_the_network_and_no_memory(kind):
    net = Net(kind=kind, normalize="cifar10")
    state = torch.get_rng_state()
    sketch = net.sketch(7, 3, 32, parts=2000)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(tensor.is_meta for tensor in sketch.state_dict().values())
    shapes = {name: tensor.shape for name, tensor in net.build(7, 3, 32).state_dict().items()}
    assert {name: tensor.shape for name, tensor in sketch.state_dict().items()} == shapes
    with pytest.raises(SpecError, match="has more than 3 parts"):
        net.sketch(7, 3, 32, parts=3)


def test_timm_nets_take_classes_channels_and_options():
    net = Net(kind="timm:resnet18", options={"stem_width": 8, "stem_type": "deep"}).build(7, 1)
    assert net.eval()(torch.rand(2, 1, 32, 32)).shape == (2, 7)
    assert net.conv1[0].out_channels == 8


def test_torchvision_nets_take_classes_and_options_and_three_channels():
    net = Net(kind="torchvision:shufflenet_v2_x0_5", options={"progress": False})
    assert net.build(7).eval()(torch.rand(2, 3, 64, 64)).shape == (2, 7)
    assert net.calls is None
    with pytest.raises(SpecError, match="takes images of 3 channels, not 1"):
        net.build(7, 1)


def test_normalisation_is_a_layer_in_front_and_no_part_of_the_state():
    model = Net(kind="cnn_small", normalize="cifar10").build(10).eval()
    assert list(dict(model.named_children())) == ["normalize", "net"]
    assert all(name.startswith("net.") for name in model.state_dict())
    x = torch.rand(2, 3, 32, 32)
    by_hand = torch.stack(
        [(x[:, c] - m) / s for c, (m, s) in enumerate(zip((0.491, 0.482, 0.447), (0.247, 0.243, 0.262), strict=True))],
        1,
    )
    torch.testing.assert_close(model(x), model.net(by_hand))
    assert isinstance(Net(kind="cnn_small").build(10), nn.Sequential)
    assert not isinstance(Net(kind="cnn_small").build(10)[0], Normalize)


def test_constants_follow_the_dtype():
    layer = Normalize([0.5], [0.25]).to(torch.float64)
    assert layer(torch.ones(1, 1, 2, 2, dtype=torch.float64)).dtype == torch.float64
    assert layer(torch.ones(1, 1, 2, 2, dtype=torch.float64)).unique().tolist() == [2.0]


def test_weights_are_loaded_and_checked(tmp_path):
    source = Net(kind="cnn_digits").build(10, 1, 8)
    path = str(tmp_path / "digits.safetensors")
    save_file(source.state_dict(), path)
    x = torch.rand(2, 1, 8, 8)
    started = Net(kind="cnn_digits", weights=path).build(10, 1, 8)
    assert torch.equal(started.eval()(x), source.eval()(x))
    with pytest.raises(CheckpointError, match=r"digits.safetensors was made for another network"):
        Net(kind="cnn_digits", weights=path).build(11, 1, 8)
