"""Further training images, such as pseudo-labelled ones, mixed into every batch."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from hydraprune.core.errors import DataError
from hydraprune.core.fingerprint import fingerprint
from hydraprune.core.objective import Batch
from hydraprune.core.seeds import generator
from hydraprune.core.spec import Number, Spec
from hydraprune.data.images import Batches, Fetch, Images
from hydraprune.data.resident import Resident


class Extra(Spec):
    """Further training images in a file, labelled by a network or made by one (arXiv:1905.13736, arXiv:2103.01946).

    Args:
        path: an `.npz` file with `image`, uint8 (N, H, W, C), and `label`, integers (N,).
        ratio: their share of every batch, in (0, 1). An epoch is still one pass over the images of the data set.
    """

    path: str
    ratio: Number = Field(default=0.5, gt=0, lt=1)

    def mixed(self, own: Images, num_classes: int) -> Mixed:
        """`own`, the training images, with those of the file, which are augmented in the same way.

        Raises:
            DataError: if the file is missing, is no such archive, or its images do not fit.
        """
        if not isinstance(own, Resident):
            raise DataError("data.extra goes with images that fit in memory, not with an image folder; drop it")
        pixels, labels = _read(Path(self.path))
        extra = own.like(pixels.movedim(3, 1).contiguous(), labels)
        if extra.shape != own.shape or not len(extra):
            raise DataError(f"{self.path}: {len(extra)} images of {extra.shape}, but those of the data are {own.shape}")
        if int(extra.labels.max()) >= num_classes:
            raise DataError(f"{self.path}: label {int(extra.labels.max())} is outside 0..{num_classes - 1}")
        return Mixed(own, extra, self.ratio)


class Mixed(Images):
    """`own` images with a share `ratio` of `extra` ones in every batch."""

    def __init__(self, own: Images, extra: Images, ratio: float) -> None:
        self.labels = own.labels
        self._own, self._extra, self._ratio = own, extra, ratio

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._own.shape

    def digest(self) -> str:
        return fingerprint(own=self._own.digest(), extra=self._extra.digest(), ratio=self._ratio)

    def subset(self, indices: Tensor | Sequence[int]) -> Mixed:
        return Mixed(self._own.subset(indices), self._extra, self._ratio)

    def batches(
        self, batch_size: int, *, seed: int, augment: bool = False, device: str | torch.device = "cpu", **settings: Any
    ) -> Batches:
        """Like those of other images; `batch_size` counts both kinds."""
        share = round(self._ratio * batch_size)
        if not 0 < share < batch_size:
            raise DataError(
                f"batch size {batch_size} has no room for a share {self._ratio:g} of extra images; raise it"
            )
        own = self._own.batches(batch_size - share, seed=seed, augment=augment, device=device, **settings)
        extra = self._extra._fetcher(seed, augment, torch.device(device))

        def fetch(epoch: int, indices: Tensor, size: int) -> Iterator[Batch]:
            order = torch.randperm(len(self._extra), generator=generator(seed, epoch, 2))
            for at, batch in zip(indices.split(size), own.fetch(epoch, indices, size), strict=True):
                others = -(-share * len(at) // size)
                # Every image brings the same others along, whichever batch and process it is in.
                rounds = torch.arange(-(-others // len(at)))[:, None]
                places = (at + rounds * len(self)).flatten()[:others] % len(order)
                more = next(iter(extra(epoch, order[places], others)))
                yield Batch(torch.cat([batch.x, more.x]), torch.cat([batch.y, more.y]))

        return replace(own, fetch=fetch)

    def _fetcher(self, seed: int, augment: bool, device: torch.device) -> Fetch:
        return self._own._fetcher(seed, augment, device)


def _read(path: Path) -> tuple[Tensor, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as file:
            image, label = file["image"], file["label"]
    except FileNotFoundError:
        raise DataError(f"{path} is missing; give an .npz file with `image` and `label`") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is no .npz file with `image` and `label` ({error})") from None
    if image.dtype != np.uint8 or image.ndim != 4:
        raise DataError(f"{path}: `image` is {image.dtype} {image.shape}; store uint8 (N, H, W, C)")
    if label.dtype.kind not in "iu" or label.shape != image.shape[:1] or not len(label):
        raise DataError(
            f"{path}: `label` is {label.dtype} {label.shape}; store a class id for each of {len(image)} images"
        )
    return torch.from_numpy(image), torch.from_numpy(label.astype(np.int64))
