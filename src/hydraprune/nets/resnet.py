"""Residual nets for small images: a 3x3 stem without pooling (arXiv:1512.03385, section 4.2)."""

from __future__ import annotations

from torch import Tensor, nn

from hydraprune.nets.options import require_side


class _BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.shortcut = nn.Sequential()
        if inputs != outputs:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride, bias=False)).append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(out + self.shortcut(x))


def _stage(blocks: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        _BasicBlock(inputs, outputs, stride), *[_BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
    )


class ResNet(nn.Module):
    """Images (B, C, H, W) to logits (B, K). Names of tensors are those of the HYDRA authors' checkpoints.

    Args:
        blocks: number of basic blocks in each of the four stages.
    """

    def __init__(self, blocks: tuple[int, int, int, int], num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.layer1 = _stage(blocks[0], 64, 64, 1)
        self.layer2 = _stage(blocks[1], 64, 128, 2)
        self.layer3 = _stage(blocks[2], 128, 256, 2)
        self.layer4 = _stage(blocks[3], 256, 512, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer1(self.relu(self.bn1(self.conv1(x))))
        out = self.layer4(self.layer3(self.layer2(out)))
        return self.linear(self.flatten(self.avgpool(out)))


def resnet18(num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> ResNet:
    """ResNet-18 for small images. Sides from 8."""
    require_side("resnet18", image_size, 8)
    return ResNet((2, 2, 2, 2), num_classes, in_channels)


def resnet34(num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> ResNet:
    """ResNet-34 for small images. Sides from 8."""
    require_side("resnet34", image_size, 8)
    return ResNet((3, 4, 6, 3), num_classes, in_channels)
