"""Convolutions, then linear layers, in one `nn.Sequential`: the small nets of certified training."""

from __future__ import annotations

import math

from torch import nn

from hydraprune.nets.options import require_side


def _sequential(
    net: str,
    convs: list[tuple[int, int, int]],
    hidden: list[int],
    num_classes: int,
    in_channels: int,
    image_size: int,
    norm: bool = False,
) -> nn.Sequential:
    """`convs`: (output channels, kernel side, stride) with padding 1; `hidden`: widths of the linear layers.

    With `norm`, batch norm follows every layer but the last, in place of the bias.
    """
    require_side(net, image_size, math.prod(stride for _, _, stride in convs))
    layers: list[nn.Module] = []
    channels, side = in_channels, image_size
    for outputs, kernel, stride in convs:
        layers.append(nn.Conv2d(channels, outputs, kernel, stride, padding=1, bias=not norm))
        if norm:
            layers.append(nn.BatchNorm2d(outputs))
        layers.append(nn.ReLU())
        channels, side = outputs, (side + 2 - kernel) // stride + 1
    layers.append(nn.Flatten())
    width = channels * side * side
    for outputs in hidden:
        layers.append(nn.Linear(width, outputs, bias=not norm))
        if norm:
            layers.append(nn.BatchNorm1d(outputs))
        layers.append(nn.ReLU())
        width = outputs
    return nn.Sequential(*layers, nn.Linear(width, num_classes))


def cnn_digits(num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Sequential:
    """Four convolutions with batch norm for small images: 28k prunable weights on 8x8 digits. Sides from 4."""
    convs = [(16, 3, 1), (16, 3, 2), (32, 3, 1), (64, 3, 2)]
    return _sequential("cnn_digits", convs, [], num_classes, in_channels, image_size, norm=True)


def cnn_small(num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Sequential:
    """CNN-small of arXiv:2002.10509: two convolutions and two linear layers. Sides from 4."""
    return _sequential("cnn_small", [(16, 4, 2), (32, 4, 2)], [100], num_classes, in_channels, image_size)


def cnn_medium(num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Sequential:
    """Six convolutions with batch norm, for studies on a CPU: 353k prunable weights at 32x32. Sides from 8."""
    convs = [(24, 3, 2), (48, 3, 1), (48, 3, 2), (96, 3, 1), (96, 3, 2), (192, 3, 1)]
    return _sequential("cnn_medium", convs, [], num_classes, in_channels, image_size, norm=True)


def cnn_large(num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Sequential:
    """CNN-large of arXiv:2002.10509: four convolutions and three linear layers. Sides from 4."""
    convs = [(32, 3, 1), (32, 4, 2), (64, 3, 1), (64, 4, 2)]
    return _sequential("cnn_large", convs, [512, 512], num_classes, in_channels, image_size)


def cnn7_bn(num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Sequential:
    """CNN7 of certified training (arXiv:2103.17268), batch norm after all layers but the last. Sides from 2."""
    convs = [(64, 3, 1), (64, 3, 1), (128, 3, 2), (128, 3, 1), (128, 3, 1)]
    return _sequential("cnn7_bn", convs, [512], num_classes, in_channels, image_size, norm=True)


def vgg4_without_maxpool(num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Sequential:
    """`vgg4` with strides instead of pooling, for bounds. Sides from 4."""
    convs = [(64, 3, 1), (64, 3, 2), (128, 3, 1), (128, 3, 2)]
    return _sequential("vgg4_without_maxpool", convs, [256, 256], num_classes, in_channels, image_size)
