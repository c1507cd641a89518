"""VGG nets with pooling to 2x2 and a head of three linear layers (arXiv:1409.1556, arXiv:2002.10509)."""

from __future__ import annotations

from torch import Tensor, nn

from hydraprune.nets.options import require_side

# One list of output channels per stage; a max pooling stands between stages, or after each of them.
_VGG4 = [[64, 64], [128, 128]]
_VGG16 = [[64, 64], [128, 128], [256] * 3, [512] * 3, [512] * 3]


class VGG(nn.Module):
    """Images (B, C, H, W) to logits (B, K). Names of tensors are those of the HYDRA authors' checkpoints.

    Args:
        stages: output channels of the 3x3 convolutions, stage by stage.
        pools: how many stages, from the first, end in 2x2 max pooling.
        norm: batch norm after each convolution.
    """

    def __init__(self, stages: list[list[int]], pools: int, norm: bool, num_classes: int, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for index, stage in enumerate(stages):
            for outputs in stage:
                layers.append(nn.Conv2d(channels, outputs, 3, padding=1, bias=False))
                layers += [nn.BatchNorm2d(outputs), nn.ReLU()] if norm else [nn.ReLU()]
                channels = outputs
            if index < pools:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(
            nn.Linear(4 * channels, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, num_classes)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.flatten(self.avgpool(self.features(x))))


def vgg4(num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> VGG:
    """Four convolutions without norm. Sides from 4."""
    require_side("vgg4", image_size, 4)
    return VGG(_VGG4, 2, False, num_classes, in_channels)


def vgg4_bn(num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> VGG:
    """Four convolutions with batch norm. Sides from 4."""
    require_side("vgg4_bn", image_size, 4)
    return VGG(_VGG4, 2, True, num_classes, in_channels)


def vgg16_bn(num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> VGG:
    """Thirteen convolutions with batch norm and four poolings. Sides from 16."""
    require_side("vgg16_bn", image_size, 16)
    return VGG(_VGG16, 4, True, num_classes, in_channels)
