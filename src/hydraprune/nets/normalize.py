"""Per-channel normalisation as a layer of the network, so that images everywhere else lie in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn

from hydraprune.core.spec import Spec, nearest

_STANDARD = {
    "cifar10": {"mean": (0.491, 0.482, 0.447), "std": (0.247, 0.243, 0.262)},
    "cifar100": {"mean": (0.507, 0.487, 0.441), "std": (0.267, 0.256, 0.276)},
    "imagenet": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
}


class Normalize(nn.Module):
    """`(x - mean) / std` for each channel of images (B, C, H, W); `mean` and `std` have C entries.

    The constants are no part of the state dict: they are rebuilt from the `Normalization` of the net's spec, and
    weights move freely between a net with normalisation and one without.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def is_by(self, mean: Sequence[float], std: Sequence[float]) -> bool:
        """Whether these are its constants, to two places after the point."""
        return len(mean) == self.mean.numel() and all(
            torch.allclose(own.flatten(), torch.tensor(given), atol=5e-3)
            for own, given in ((self.mean, mean), (self.std, std))
        )


class Normalization(Spec):
    """Mean and standard deviation of each channel, for pixels in [0, 1]."""

    mean: tuple[Annotated[float, Field(ge=0, le=1)], ...]
    std: tuple[Annotated[float, Field(gt=0, le=1)], ...]

    @model_validator(mode="after")
    def _same_channels(self) -> Normalization:
        if len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} means but {len(self.std)} standard deviations; give one per channel")
        return self


def _standard(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value not in _STANDARD:
        raise ValueError(f"unknown normalisation {value!r}; {nearest(value, _STANDARD)}")
    return _STANDARD[value]


NamedNormalization = Annotated[Normalization, BeforeValidator(_standard)]
"""A `Normalization`, or the name of a standard one: `cifar10`, `cifar100`, `imagenet`."""
