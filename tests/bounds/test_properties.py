"""What must not change a bound, what must change it in one direction, and bounds written out slowly."""

import copy
import weakref
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode

from bounds.small import NETS, build, conv, mlp
from bounds.written_out import affine_parts, crown, crown_boxes, intervals, zonotope
from hydraprune.bounds import BOUNDS, Bounds, logit_bounds, margin_bounds
from hydraprune.core.errors import SpecError
from hydraprune.core.threat import Box, ThreatModel
from hydraprune.masks.source import FixedMask
from hydraprune.masks.view import MaskView

METHODS: list[Any] = ["ibp", "crown-ibp", {"kind": "crown-ibp", "slope": "zero"}, "crown", "symbolic", "best"]
MONOTONE: list[Any] = ["ibp", {"kind": "crown-ibp", "slope": "same"}, "symbolic"]
THREAT = ThreatModel(eps="6/255")
every_method = pytest.mark.parametrize("method", METHODS, ids=str)


def bound(method: Any) -> Bounds:
    return BOUNDS.make(method, "bound")


def found(net: nn.Module, x: Tensor, y: Tensor, method: Any) -> Tensor:
    """Margins and both ends of the logits, (B, 3, K)."""
    return torch.stack([margin_bounds(net, x, y, THREAT, method), *logit_bounds(net, x, THREAT, method)], 1).detach()


def same(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


# ---------------------------------------------------------------- the same function


def folded(net: nn.Sequential) -> nn.Sequential:
    layers: list[nn.Module] = []
    for layer in net:
        if isinstance(layer, nn.BatchNorm2d):
            layers[-1] = fuse_conv_bn_eval(layers[-1], layer)
        elif isinstance(layer, nn.BatchNorm1d):
            layers[-1] = fuse_linear_bn_eval(layers[-1], layer)
        else:
            layers.append(layer)
    return nn.Sequential(*layers).eval()


def padded(net: nn.Sequential) -> nn.Sequential:
    inserted = [part for layer in net for part in (nn.Identity(), layer, nn.Dropout(0.7))]
    return nn.Sequential(*inserted).eval()


def permuted(net: nn.Sequential) -> nn.Sequential:
    """The channels of the first convolution in another order, for its norm and the next convolution too."""
    net, order = copy.deepcopy(net), torch.tensor([2, 0, 3, 1])
    first, norm, second = net[0], net[1], net[3]
    for tensor in (first.weight, first.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var):
        tensor.data = tensor.data[order]
    second.weight.data = second.weight.data[:, order]
    return net


@every_method
@pytest.mark.parametrize("change", [folded, padded, permuted])
def test_the_same_function_written_otherwise(change: Any, method: Any) -> None:
    net, x, y = build("conv")
    assert isinstance(net, nn.Sequential)
    other = change(net)
    assert len(other) != len(net) or change is permuted
    torch.testing.assert_close(other(x), net(x))
    same(found(other, x, y, method), found(net, x, y, method))


@every_method
def test_a_dead_channel_removed_changes_nothing(method: Any) -> None:
    net, x, y = build("conv")
    # Channel 1 of the first layer is zero behind its ReLU; channel 3 of the third layer is zero altogether.
    net[1].weight.data[1], net[1].bias.data[1] = 0, 0
    net[5].weight.data[3] = 0
    small = copy.deepcopy(net)
    left, rest = torch.tensor([0, 2, 3]), torch.tensor([0, 1, 2, 4])
    first, norm, second, third, fc = (small[i] for i in (0, 1, 3, 5, 8))
    for tensor in (first.weight, first.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var):
        tensor.data = tensor.data[left]
    second.weight.data = second.weight.data[:, left]
    third.weight.data = third.weight.data[rest]
    fc.weight.data = fc.weight.data.unflatten(1, (5, -1))[:, rest].flatten(1)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())
    torch.testing.assert_close(small(x), net(x))
    same(found(small, x, y, method), found(net, x, y, method))


@every_method
@pytest.mark.parametrize("name", NETS)
def test_masked_weights_are_weights_that_are_zero(name: str, method: Any) -> None:
    net, x, y = build(name)
    zeroed = copy.deepcopy(net)
    layers = [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    masks = {f"{n}.weight": torch.rand_like(net.get_submodule(n).weight) > 0.6 for n in layers}
    for key, mask in masks.items():
        zeroed.get_parameter(key).data.mul_(mask)
    MaskView(net).attach({key: FixedMask(mask) for key, mask in masks.items()})
    assert torch.equal(found(net, x, y, method), found(zeroed, x, y, method))


def test_a_layer_in_two_factors_is_looser_by_intervals_and_the_same_by_lines() -> None:
    net, x, y = build("mlp")
    factor = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64)).Q
    left, right = nn.Linear(32, 12, dtype=torch.float64), nn.Linear(12, 12, dtype=torch.float64)
    left.weight.data, left.bias.data = factor.T @ net[1].weight.data, factor.T @ net[1].bias.data
    right.weight.data, right.bias.data = factor, torch.zeros(12, dtype=torch.float64)
    split = nn.Sequential(net[0], left, right, *net[2:]).eval()
    torch.testing.assert_close(split(x), net(x))
    for method in ("crown", "symbolic"):
        same(found(split, x, y, method), found(net, x, y, method))
    margins, looser = (margin_bounds(n, x, y, THREAT, "ibp").detach() for n in (net, split))
    assert (looser <= margins + 1e-12).all()
    assert looser.sum() < margins.sum() - 0.1


@every_method
def test_scaled_logits_have_scaled_bounds(method: Any) -> None:
    net, x, y = build("conv")
    before = found(net, x, y, method)
    for tensor in net[-1].parameters():
        tensor.data *= 8
    same(found(net, x, y, method), 8 * before)


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown", "symbolic"])
@pytest.mark.parametrize("name", NETS)
def test_an_image_is_bounded_alike_in_any_company(name: str, method: Any) -> None:
    """Even one whose pixels reach neither 0 nor 1."""
    net, x, y = build(name, 4)
    x[1] = x[1] * 0.2 + 0.4
    together = found(net, x, y, method)
    alone = [found(net, x[i : i + 1], y[i : i + 1], method) for i in range(4)]
    same(together, torch.cat(alone))


# ---------------------------------------------------------------- larger boxes


@pytest.mark.parametrize("method", MONOTONE, ids=str)
@pytest.mark.parametrize("name", [name for name in NETS if name != "pooled"])
def test_bounds_loosen_with_the_radius(name: str, method: Any) -> None:
    net, x, y = build(name)
    before = None
    for eps in (0, 1, 4, 16):
        threat = ThreatModel(eps=eps / 255)
        margins, (lower, upper) = margin_bounds(net, x, y, threat, method), logit_bounds(net, x, threat, method)
        ends = torch.stack([margins, lower, -upper]).detach()
        assert before is None or (ends <= before + 1e-12).all()
        assert before is None or (ends < before - 1e-6).any()
        before = ends


@pytest.mark.parametrize("name", NETS)
def test_nested_boxes_have_nested_bounds(name: str) -> None:
    net, x, y = build(name)
    outer = THREAT.box(x)
    size = outer.upper - outer.lower
    ends = torch.rand(2, *x.shape, dtype=x.dtype).sort(0).values
    inner = Box(*(outer.lower + size * end for end in ends))
    with torch.no_grad():
        wide, narrow = (bound("ibp").analyse(net, box) for box in (outer, inner))
    assert (narrow.margins(y) >= wide.margins(y) - 1e-12).all()
    for name, box in {**narrow.boxes, "": narrow.logits()}.items():
        around = wide.boxes[name] if name else wide.logits()
        assert (box.lower >= around.lower - 1e-12).all()
        assert (box.upper <= around.upper + 1e-12).all()


# ---------------------------------------------------------------- written out


@pytest.mark.parametrize("eps", ["2/255", "16/255"])
@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_bounds_written_out(name: str, eps: str) -> None:
    """The zonotope is the symbolic bound; one slow way back is CROWN, and CROWN-IBP where its boxes are intervals."""
    net, x, y = build(name)
    assert isinstance(net, nn.Sequential)
    threat = ThreatModel(eps=eps)
    parts, box = affine_parts(net, x), threat.box(x)
    expected: dict[str, list[np.ndarray]] = defaultdict(list)
    for i, label in enumerate(y.tolist()):
        ends = box.lower[i].flatten().numpy(), box.upper[i].flatten().numpy()
        spec = np.eye(4)[label] - np.eye(4)
        simple, tight = intervals(parts, *ends), crown_boxes(parts, *ends)
        assert any((low < 0).any() and (high > 0).any() for low, high in tight)
        expected["symbolic"].append(zonotope(parts, *ends, spec))
        expected["crown"].append(crown(parts, *ends, spec, tight))
        expected["crown-ibp"].append(crown(parts, *ends, spec, simple))
    for method, margins in expected.items():
        same(margin_bounds(net, x, y, threat, method).detach(), torch.from_numpy(np.stack(margins)))
    assert eps == "2/255" or not np.allclose(expected["crown"], expected["crown-ibp"])


# ---------------------------------------------------------------- gradients


class Margins(nn.Module):
    def __init__(self, net: nn.Module, method: Any) -> None:
        super().__init__()
        self.net = net
        self.bound = bound(method)

    def forward(self, lower: Tensor, upper: Tensor, y: Tensor) -> Tensor:
        return self.bound.margins(self.net, Box(lower, upper), y)


@pytest.mark.parametrize(
    ("factory", "method"), [*[(mlp, m) for m in METHODS], (conv, "ibp"), (conv, "crown-ibp"), (conv, "symbolic")]
)
def test_gradients_are_those_of_the_numbers(factory: Any, method: Any) -> None:
    net, x, y = build(factory.__name__, 2)
    module, box = Margins(net, method), THREAT.box(x)
    weights = dict(module.named_parameters())
    names = [name for name in weights if weights[name].numel() < 50]
    assert len(names) >= 3

    def margins(*tensors: Tensor) -> Tensor:
        changed = {**weights, **dict(zip(names, tensors, strict=True))}
        return torch.func.functional_call(module, changed, (*box, y))

    inputs = [weights[name].detach().clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(margins, inputs, eps=1e-7, atol=1e-5, fast_mode=True)


@every_method
@pytest.mark.parametrize("eps", [0.0, "6/255"])
def test_dead_channels_have_finite_gradients(eps: Any, method: Any) -> None:
    """Pruned channels are constant zero: their boxes have no width, which a slope is divided by."""
    net, x, y = build("conv")
    with torch.no_grad():
        for layer in (net[0], net[3], net[5], net[8]):
            layer.weight[:2] = 0
            if layer.bias is not None:
                layer.bias[:2] = 0
        net[1].bias[:2] = net[1].running_mean[:2] = 0
    margins = bound(method).margins(net, ThreatModel(eps=eps).box(x), y)
    boxes = bound(method).analyse(net, ThreatModel(eps=eps).box(x)).boxes
    assert any(((box.lower == 0) & (box.upper == 0)).any() for box in boxes.values())
    margins.sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all(), name
    assert net[12].weight.grad.abs().sum() > 0


# ---------------------------------------------------------------- memory


class Peak(TorchDispatchMode):
    """The largest number of bytes that tensors made inside hold at once."""

    def __init__(self) -> None:
        super().__init__()
        self.users: dict[int, int] = defaultdict(int)
        self.now = self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id_of(t) for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor) and (self.users[id_of(tensor)] or id_of(tensor) not in given):
                key, size = id_of(tensor), tensor.untyped_storage().nbytes()
                self.now += 0 if self.users[key] else size
                self.users[key] += 1
                weakref.finalize(tensor, self.release, key, size)
        self.most = max(self.most, self.now)
        return result

    def release(self, key: int, size: int) -> None:
        self.users[key] -= 1
        self.now -= 0 if self.users[key] else size


def id_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def peak(net: nn.Module, x: Tensor, method: str, chunk: int) -> int:
    box = THREAT.box(x)
    with torch.no_grad(), Peak() as seen:
        bound({"kind": method, "chunk": chunk}).analyse(net, box).logits()
    return seen.most


@pytest.mark.parametrize("method", ["crown", "symbolic"])
def test_memory_grows_by_a_few_layers_for_each_row_of_the_chunk(method: str) -> None:
    width, images = 128, 2
    net = nn.Sequential(nn.Flatten(), *[nn.Linear(width, width), nn.ReLU()] * 3, nn.Linear(width, 4)).eval()
    x = torch.rand(images, 1, 8, 16)
    row = width * x.element_size()
    small, large, whole = (peak(net, x, method, chunk) for chunk in (16, 128, images * width))
    assert row < (large - small) / 112 < 5 * row
    assert small < 0.35 * whole
    # More images are more boxes at each of the 8 steps, and no more rows.
    assert peak(net, torch.cat([x, x]), method, 16) - small < 4 * 8 * images * row


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "ask", [logit_bounds, lambda net, x, *rest: margin_bounds(net, x, torch.zeros(2).long(), *rest)]
)
def test_refuses_a_network_in_training_mode_and_images_that_are_none(ask: Any) -> None:
    net, x, _ = build("mlp", 2)
    for bad, message in (
        (x * 300, r"floats in \[0, 1\]"),
        (x * torch.nan, r"floats in \[0, 1\]"),
        (x.byte(), "torch.uint8"),
    ):
        with pytest.raises(SpecError, match=message):
            ask(net, bad, THREAT, "ibp")
    with pytest.raises(SpecError, match="not for the norm 'l2'"):
        ask(net, x, ThreatModel(norm="l2", eps=1), "ibp")
    with pytest.raises(SpecError, match="unknown bound 'ipb'; did you mean 'ibp'"):
        ask(net, x, THREAT, "ipb")
    net.append(nn.Dropout(0.5))
    with pytest.raises(SpecError, match=r"training mode has no certificate.*model\.eval\(\)"):
        ask(net, x, THREAT, "ibp")


def test_refuses_labels_that_are_none() -> None:
    net, x, y = build("mlp", 2)
    for bad in (y.float(), y[:1], y - 9, y[:, None]):
        with pytest.raises(SpecError, match="one class id"):
            margin_bounds(net, x, bad, THREAT)
    with pytest.raises(SpecError, match="label 9 is none of the 4 classes"):
        margin_bounds(net, x, y * 0 + 9, THREAT)
