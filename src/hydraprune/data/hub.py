"""CIFAR-10 and SVHN, from the Hugging Face hub or from a folder of the same parquet files."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field

from hydraprune.core.errors import DataError
from hydraprune.core.extras import extra
from hydraprune.data.cache import cached, digest_of
from hydraprune.data.images import Images
from hydraprune.data.resident import Resident
from hydraprune.data.source import Source

if TYPE_CHECKING:
    import pyarrow as pa

KINDS = {"pixels": torch.uint8, "labels": torch.int64}
"""What `tensors` makes of tables."""


class Hub(Source):
    """Small colour images in parquet tables, decoded once and kept in the cache folder.

    Args:
        path: a folder with `train*.parquet` and `test*.parquet` in it or below; None downloads them from the hub.
        padding: augmentation crops from the image framed with this many zeros.
    """

    repository: ClassVar[str]
    config: ClassVar[str]
    image: ClassVar[str]
    classes: ClassVar[tuple[str, ...]]

    path: str | None = None
    padding: int = Field(4, ge=0)

    def read(self) -> tuple[Images, Images, tuple[str, ...]]:
        return self._split("train"), self._split("test"), self.classes

    def _split(self, split: str) -> Resident:
        with extra("cifar", f"data {self.kind!r}"):
            from hydraprune.data.parquet import parquet_files, read_table, tensors
        if self.path is None:
            held = cached(f"{self.kind}-{split}-hub", lambda: tensors(self._download(split), self.image), KINDS)
        else:
            files = parquet_files(self.path, split)
            held = cached(
                f"{self.kind}-{split}-{digest_of(files)}",
                lambda: tensors({str(file): read_table(file) for file in files}, self.image),
                KINDS,
            )
        return Resident(held["pixels"], held["labels"], flip=self.flip, padding=self.padding)

    def _download(self, split: str) -> dict[str, pa.Table]:
        with extra("hub", f"data {self.kind!r} without data.path"):
            from datasets import load_dataset
        try:
            rows = load_dataset(self.repository, self.config, split=split)
        except Exception as error:  # the hub's libraries raise errors of several families
            raise DataError(
                f"cannot fetch {self.repository} from the Hugging Face hub ({error}); "
                "connect to the network, or give data.path: a folder with its parquet files"
            ) from None
        return {f"{self.repository} {split}": rows.with_format("arrow")[:]}


class Cifar10(Hub):
    """CIFAR-10: 50,000 training and 10,000 test photographs, 32x32, ten classes."""

    repository = "uoft-cs/cifar10"
    config = "plain_text"
    image = "img"
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    kind: Literal["cifar10"] = "cifar10"


class Svhn(Hub):
    """Street View House Numbers: 73,257 training and 26,032 test digits, cropped to 32x32.

    Mirrored in training as in the experiments of arXiv:2002.10509; `flip: false` leaves digits as they are.
    """

    repository = "ufldl-stanford/svhn"
    config = "cropped_digits"
    image = "image"
    classes = tuple("0123456789")

    kind: Literal["svhn"] = "svhn"
