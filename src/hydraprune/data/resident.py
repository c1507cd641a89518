"""Images that stay on the device as bytes and are cropped and flipped there, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from hydraprune.core.errors import DataError
from hydraprune.core.fingerprint import content
from hydraprune.core.objective import Batch
from hydraprune.core.seeds import generator
from hydraprune.data.images import Fetch, Images, class_ids


def shifted(x: Tensor, top: Tensor, left: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Crops of `x` (B, C, H, W), each of its own size, out of `x` framed with `padding` zeros.

    Args:
        top, left: int64 (B,), upper left corner of each crop in the framed image, 0 to 2 * padding.
        flip: int64 (B,), 1 where the crop is mirrored left to right.
    """
    channels, height, width = x.shape[1:]
    across = torch.arange(width, device=x.device)
    columns = left[:, None] + torch.where(flip[:, None] > 0, across.flip(0), across)
    rows = top[:, None] + torch.arange(height, device=x.device)
    pixels = rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]
    framed = F.pad(x, (padding,) * 4).flatten(2)
    return framed.gather(2, pixels.flatten(1)[:, None].expand(-1, channels, -1)).view_as(x)


class Resident(Images):
    """Images held in memory as bytes, moved to the device when first used there.

    Args:
        pixels: uint8 (N, C, H, W).
        labels: class ids, integers (N,).
        flip: whether augmentation mirrors images left to right, each with probability 1/2.
        padding: augmentation crops at random from the image framed with this many zeros.

    Raises:
        DataError: if pixels or labels have another type or shape.
    """

    def __init__(self, pixels: Tensor, labels: Tensor, *, flip: bool = False, padding: int = 0) -> None:
        if pixels.dtype != torch.uint8 or pixels.dim() != 4:
            raise DataError(
                f"images are {pixels.dtype} {tuple(pixels.shape)}; give uint8 (N, C, H, W), "
                "or floats in [0, 1] through Resident.from_float"
            )
        if padding < 0:
            raise DataError(f"padding {padding} is negative; 0 crops nothing")
        self.labels = class_ids(labels, len(pixels))
        self._pixels = pixels
        self._flip = flip
        self._padding = padding

    @classmethod
    def from_float(cls, images: Tensor, labels: Tensor, *, flip: bool = False, padding: int = 0) -> Self:
        """Like the constructor, for floats in [0, 1], which are rounded to the nearest of 256 levels.

        Raises:
            DataError: if a pixel is outside [0, 1] or not finite.
        """
        if not ((images >= 0) & (images <= 1)).all():
            raise DataError(
                f"pixels span {images.min():g} to {images.max():g}; divide bytes by 255 to get [0, 1], "
                "and leave normalisation to the network"
            )
        return cls((images * 255).round().to(torch.uint8), labels, flip=flip, padding=padding)

    def like(self, pixels: Tensor, labels: Tensor) -> Resident:
        """Other images, augmented as these are."""
        return Resident(pixels, labels, flip=self._flip, padding=self._padding)

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self._pixels.shape[1:]
        return channels, height, width

    def digest(self) -> str:
        return content(self._pixels, self.labels)

    def subset(self, indices: Tensor | Sequence[int]) -> Resident:
        at = torch.as_tensor(indices, dtype=torch.int64)
        pixels = self._pixels.index_select(0, at.to(self._pixels.device))
        return self.like(pixels, self.labels[at.cpu()])

    def _fetcher(self, seed: int, augment: bool, device: torch.device) -> Fetch:
        def fetch(epoch: int, indices: Tensor, batch_size: int) -> Iterator[Batch]:
            self._pixels = pixels = self._pixels.to(device)
            labels = self.labels.to(device)
            draws = self._draws(generator(seed, epoch, 1)).to(device) if augment else None
            for at in indices.to(device).split(batch_size):
                x = pixels.index_select(0, at)
                if draws is not None:
                    top, left, flip = draws[:, at]
                    x = shifted(x, top, left, flip, self._padding)
                yield Batch(x.float().div_(255), labels[at])

        return fetch

    def _draws(self, rng: torch.Generator) -> Tensor:
        """(3, N): top, left and flip of every image; drawn for all, so neither order nor ranks change them."""
        corners = torch.randint(0, 2 * self._padding + 1, (2, len(self)), generator=rng)
        flips = torch.randint(0, 2, (1, len(self)), generator=rng) * self._flip
        return torch.cat([corners, flips])
