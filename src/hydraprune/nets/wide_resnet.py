"""Wide residual nets with pre-activation blocks (arXiv:1605.07146)."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from hydraprune.core.errors import SpecError
from hydraprune.nets.options import require_side


class _WideBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        # The spelling of the authors' checkpoints.
        self.convShortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        return shortcut + self.conv2(self.relu2(self.bn2(self.conv1(active))))


def _group(blocks: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
    first = _WideBlock(inputs, outputs, stride)
    rest = [_WideBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
    return nn.Sequential(OrderedDict(layer=nn.Sequential(first, *rest)))


class WideResNet(nn.Module):
    """Images (B, C, H, W) to logits (B, K). Names of tensors are those of the HYDRA authors' checkpoints.

    Args:
        depth: 6n + 4 layers, n blocks in each of three groups.
        widen: factor on the widths 16, 32, 64.
        legacy_dead_block: add the group `sub_block1`, which no image ever passes through, only to load the authors'
            checkpoints whole and to reproduce their counts.
    """

    def __init__(
        self, depth: int, widen: int, num_classes: int, in_channels: int, legacy_dead_block: bool = False
    ) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.block1 = _group(blocks, 16, 16 * widen, 1)
        if legacy_dead_block:
            self.sub_block1 = _group(blocks, 16, 16 * widen, 1)
        self.block2 = _group(blocks, 16 * widen, 32 * widen, 2)
        self.block3 = _group(blocks, 32 * widen, 64 * widen, 2)
        self.bn1 = nn.BatchNorm2d(64 * widen)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(64 * widen, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(self.flatten(self.avgpool(self.relu(self.bn1(out)))))


def wrn(
    depth: int,
    widen: int,
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    legacy_dead_block: bool = False,
) -> WideResNet:
    """WRN-`depth`-`widen`. Sides from 4.

    Raises:
        SpecError: for a depth that is not 6n + 4, or a width of 0.
    """
    if depth < 10 or (depth - 4) % 6 or widen < 1:
        raise SpecError(f"there is no WRN-{depth}-{widen}; the depth is 10, 16, 22, 28, ..., and the width 1 or more")
    require_side(f"wrn_{depth}_{widen}", image_size, 4)
    return WideResNet(depth, widen, num_classes, in_channels, legacy_dead_block)
