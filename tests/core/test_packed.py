"""Packed convolutions: the numbers of the layer itself, for outputs and for the gradients of inputs."""

import pytest
import torch
from torch import Tensor, nn

from hydraprune.core.packed import Packed, packable
from hydraprune.core.twin import Twin

LAYERS = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "no bias": {"kernel_size": 3, "padding": 1, "bias": False},
    "no padding": {"kernel_size": 3},
    "as much padding as the kernel allows": {"kernel_size": 3, "padding": 2},
    "1x1": {"kernel_size": 1},
    "odd": {"kernel_size": (2, 5), "padding": (0, 3)},
    "dilated": {"kernel_size": 3, "padding": (1, 4), "dilation": (1, 2)},
}
OTHERS = {
    "strided": {"kernel_size": 3, "stride": 2},
    "grouped": {"kernel_size": 3, "groups": 2},
    "padded beyond the kernel": {"kernel_size": 1, "padding": 1},
    "padded by name": {"kernel_size": 3, "padding": "same"},
    "reflecting": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
}
needs_bf16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bf16 convolutions in oneDNN"
)


def layer(bias: bool = True, **settings) -> nn.Conv2d:
    conv = nn.Conv2d(6, 10, bias=bias, **settings).to(torch.bfloat16)
    return conv.requires_grad_(False)


def both(function, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and the input's gradient of a weighted sum of it."""
    x = x.clone().requires_grad_()
    y = function(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    (gradient,) = torch.autograd.grad((y * weights).sum(), x)
    return y.detach(), gradient


def exact(conv: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """In float64, from the same bf16 weights and images."""
    wide = nn.Conv2d(6, 10, conv.kernel_size, conv.stride, conv.padding, conv.dilation, bias=conv.bias is not None)
    wide.load_state_dict(conv.state_dict())
    return both(wide.double(), x.double())


@needs_bf16
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("case", LAYERS)
def test_it_equals_the_layer_in_output_and_gradient(case, memory):
    conv = layer(**LAYERS[case])
    x = torch.rand(3, 6, 9, 8).to(torch.bfloat16).contiguous(memory_format=memory)
    assert packable(conv)
    for found, wanted in zip(both(Packed(conv), x), exact(conv, x), strict=True):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), wanted, rtol=2e-2, atol=2e-2)


@needs_bf16
def test_it_casts_images_and_gives_back_gradients_in_their_type():
    conv = layer(**LAYERS["3x3"])
    x = torch.rand(3, 6, 9, 8)
    output, gradient = both(Packed(conv), x)
    assert (output.dtype, gradient.dtype) == (torch.bfloat16, torch.float32)


@needs_bf16
def test_it_notices_new_weights_and_other_sizes():
    conv = layer(**LAYERS["3x3"])
    packed = Packed(conv)
    for size in ((3, 6, 9, 8), (5, 6, 4, 4), (3, 6, 9, 8)):
        conv.weight.copy_(torch.randn_like(conv.weight))
        x = torch.rand(size).to(torch.bfloat16)
        for found, wanted in zip(both(packed, x), exact(conv, x), strict=True):
            torch.testing.assert_close(found.double(), wanted, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_no_plain_convolution_is_left_alone(case):
    assert not packable(layer(**OTHERS[case]))


def test_only_bf16_is_packed():
    assert not packable(layer(kernel_size=3).float())
    assert not packable(nn.Linear(3, 3).to(torch.bfloat16))


@needs_bf16
def test_the_network_that_attacks_see_is_packed_under_autocast_only():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2))

    def forwards() -> list[bool]:
        return [isinstance(layer.forward, Packed) for layer in Twin(model).refresh(0)]

    assert forwards() == [False] * 4
    with torch.autocast("cpu", torch.bfloat16):
        assert forwards() == [True, False, False, False]
