"""Photographs that do not fit in memory, read and resized by worker processes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import v2

from hydraprune.core.errors import DataError
from hydraprune.core.fingerprint import content, fingerprint
from hydraprune.core.objective import Batch
from hydraprune.core.seeds import generator
from hydraprune.data.cache import files_digest
from hydraprune.data.decode import rgb
from hydraprune.data.images import Fetch, Images, class_ids

Key = tuple[int, list[int]]
"""An epoch and the indices of one batch."""


class _Reader(TorchDataset):
    """Whole batches, uint8 (B, 3, size, size) with their indices: what runs in a worker."""

    def __init__(self, files: Sequence[str], transform: v2.Compose, seed: int) -> None:
        self.files = files
        self.transform = transform
        self.seed = seed

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor] | str:
        epoch, indices = key
        try:
            return torch.stack([self._image(epoch, index) for index in indices]), torch.tensor(indices)
        except DataError as error:
            return str(error)  # raised in the main process, which would otherwise print the worker's traceback

    def _image(self, epoch: int, index: int) -> Tensor:
        photograph = rgb(self.files[index], self.files[index])
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(generator(self.seed, epoch, index).get_state())
            return self.transform(photograph)


class _Loader:
    """The batches of one pass at a time; the workers live on from epoch to epoch."""

    def __init__(self, reader: _Reader, labels: Tensor, workers: int, device: torch.device) -> None:
        self._labels = labels
        self._device = device
        self._keys: list[Key] = []
        self._pass = 0
        self._loader = DataLoader(
            reader,
            batch_size=None,
            sampler=self._keys,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # its own, so that reading leaves the global random numbers alone
        )

    def __call__(self, epoch: int, indices: Tensor, batch_size: int) -> Iterator[Batch]:
        self._pass += 1
        current = self._pass
        self._keys[:] = [(epoch, chunk.tolist()) for chunk in indices.split(batch_size)]
        for read in self._loader:
            if current != self._pass:
                raise DataError(
                    "a later epoch of these batches has begun; call `batches` once more to read two at a time"
                )
            if isinstance(read, str):
                raise DataError(read)
            pixels, at = read
            x = pixels.to(self._device, non_blocking=True).float().div_(255)
            yield Batch(x, self._labels[at].to(self._device))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Streamed(Images):
    """Image files of any size, brought to `size` x `size` pixels in colour as they are read.

    Training crops a random part (8 % to 100 % of the area, side ratio 3/4 to 4/3) and mirrors; otherwise the shorter
    side is resized to size * 256/224 and the centre is cut out. Crops depend on seed, epoch and image alone, so the
    number of workers changes nothing but the speed.

    Args:
        files: paths of N images.
        labels: class ids, integers (N,).
        size: side of the images, in pixels.
        flip: whether augmentation mirrors images left to right, each with probability 1/2.
        workers: processes that read, at most one per core; 0 reads in this one.

    Raises:
        DataError: when a batch is read with an image that cannot be decoded.
    """

    def __init__(self, files: Sequence[str], labels: Tensor, size: int, *, flip: bool = True, workers: int = 8) -> None:
        self.labels = class_ids(labels, len(files))
        self._files = files
        self._size = size
        self._flip = flip
        self._workers = workers

    @property
    def shape(self) -> tuple[int, int, int]:
        return 3, self._size, self._size

    def digest(self) -> str:
        return fingerprint(files=files_digest(self._files), labels=content(self.labels), size=self._size)

    def subset(self, indices: Tensor | Sequence[int]) -> Streamed:
        at = torch.as_tensor(indices, dtype=torch.int64).cpu()
        files = [self._files[index] for index in at.tolist()]
        return Streamed(files, self.labels[at], self._size, flip=self._flip, workers=self._workers)

    def _fetcher(self, seed: int, augment: bool, device: torch.device) -> Fetch:
        if augment:
            steps = [v2.RandomResizedCrop(self._size), v2.RandomHorizontalFlip(0.5 if self._flip else 0.0)]
        else:
            steps = [v2.Resize(round(self._size * 256 / 224)), v2.CenterCrop(self._size)]
        reader = _Reader(self._files, v2.Compose([*steps, v2.PILToTensor()]), seed)
        return _Loader(reader, self.labels, min(self._workers, _cores()), device)
