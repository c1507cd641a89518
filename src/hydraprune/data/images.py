"""A split of images, and passes over it that come out the same whenever they are asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hydraprune.core.errors import DataError
from hydraprune.core.objective import Batch
from hydraprune.core.seeds import generator
from hydraprune.core.spec import whole

Fetch = Callable[[int, Tensor, int], Iterator[Batch]]
"""(epoch, indices in order, batch size) -> the batches of these images."""


def class_ids(labels: Tensor, count: int) -> Tensor:
    """`labels` as int64 (count,) on the CPU.

    Raises:
        DataError: if they are not `count` integers of at least 0.
    """
    if labels.is_floating_point() or labels.is_complex() or labels.shape != (count,):
        raise DataError(
            f"labels are {labels.dtype} {tuple(labels.shape)}; give one integer class id for each of {count} images"
        )
    if count and int(labels.min()) < 0:
        raise DataError(f"label {int(labels.min())} of image {int(labels.argmin())} is negative; class ids start at 0")
    return labels.to("cpu", torch.int64)


@dataclass(frozen=True)
class Batches:
    """Passes over a split of `total` images; `len()` is the number of batches of one pass.

    With `shuffle`, the `world` ranks take disjoint shares of equal length of one permutation, and the few images left
    over sit this epoch out. In fixed order no image is left out, so shares may differ by one image.
    """

    sound: ClassVar[bool] = True
    """Whoever made the split has looked at its images and labels."""

    fetch: Fetch
    total: int
    batch_size: int
    seed: int
    shuffle: bool
    drop_last: bool
    rank: int
    world: int

    def __post_init__(self) -> None:
        whole(self.batch_size, "batch size", 1)
        whole(self.seed, "seed")
        if not 0 <= self.rank < self.world:
            raise DataError(f"rank {self.rank} of {self.world}: ranks run from 0 to world - 1")
        if self.total and not len(self):
            raise DataError(
                f"{self.total} images over {self.world} processes fill no batch; lower batch size {self.batch_size}"
            )

    def _share(self) -> int:
        return self.total // self.world if self.shuffle else len(range(self.rank, self.total, self.world))

    def __len__(self) -> int:
        full, rest = divmod(self._share(), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of epoch `number` (from 0): order, crops and flips are a function of the seed and it alone."""
        if self.shuffle:
            order = torch.randperm(self.total, generator=generator(self.seed, number))
        else:
            order = torch.arange(self.total)
        mine = order[self.rank :: self.world][: min(self._share(), len(self) * self.batch_size)]
        return self.fetch(number, mine, min(self.batch_size, len(mine))) if len(mine) else iter(())


class Images(ABC):
    """A split of a data set: images of one shape with class ids, in a fixed order."""

    labels: Tensor
    """Class ids, int64 (N,), on the CPU."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""

    @abstractmethod
    def digest(self) -> str:
        """A hexadecimal name for the content: images, labels and their order, wherever they come from."""

    @abstractmethod
    def subset(self, indices: Tensor | Sequence[int]) -> Images:
        """The images at `indices`, in that order."""

    @abstractmethod
    def _fetcher(self, seed: int, augment: bool, device: torch.device) -> Fetch: ...

    def take(self, count: int) -> Images:
        """The first `count` images, or all where there are fewer.

        Raises:
            SpecError: for a count below 0.
        """
        return self.subset(torch.arange(min(whole(count, "count"), len(self))))

    def batches(
        self,
        batch_size: int,
        *,
        seed: int,
        augment: bool = False,
        shuffle: bool = False,
        drop_last: bool = False,
        device: str | torch.device = "cpu",
        rank: int = 0,
        world: int = 1,
    ) -> Batches:
        """Passes over these images in batches on `device`, at most `batch_size` images each.

        Args:
            seed: decides order, crops and flips, together with the number of the epoch.
            augment: crop and flip at random, as the source of the images says.
            shuffle: a new order in each epoch.
            drop_last: leave out a last batch of fewer images.
            rank, world: this process among those that share the images.

        Raises:
            SpecError: for a batch size below 1 or a seed below 0.
            DataError: if no batch can be made of these settings.
        """
        fetch = self._fetcher(seed, augment, torch.device(device))
        return Batches(fetch, len(self), batch_size, seed, shuffle, drop_last, rank, world)
