"""ImageNet and any other folder of photographs, one folder per class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field

from hydraprune.core.errors import DataError
from hydraprune.core.extras import extra
from hydraprune.data.images import Images
from hydraprune.data.source import Source

if TYPE_CHECKING:
    from hydraprune.data.streamed import Streamed

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


class Folder(Source):
    """`path/train/CLASS/*.jpg` for training, and `path/test` (else `path/val`) built alike for the test set.

    Args:
        path: the folder that holds `train`; a recipe may leave it to be given when it is run.
        size: side to which images are brought, in pixels.
        workers: processes that read images, at most one per core.
    """

    kind: Literal["images"] = "images"
    path: str | None = None
    size: int = Field(224, ge=1)
    workers: int = Field(8, ge=0)

    def read(self) -> tuple[Images, Images, tuple[str, ...]]:
        if self.path is None:
            raise DataError("data.path is missing; name the folder that holds train/ and test/ (or val/)")
        root = Path(self.path).expanduser()
        test = root / "test" if (root / "test").is_dir() else root / "val"
        for folder in (root / "train", test):
            if not folder.is_dir():
                raise DataError(
                    f"{folder} is not a folder; data.path needs train/CLASS/*.jpg and test/CLASS/*.jpg (or val)"
                )
        classes = tuple(sorted(entry.name for entry in (root / "train").iterdir() if entry.is_dir()))
        if not classes:
            raise DataError(f"{root / 'train'} holds no folder; put the images of each class in a folder of its name")
        if unknown := {entry.name for entry in test.iterdir() if entry.is_dir()} - set(classes):
            raise DataError(
                f"{test} has class {min(unknown)!r}, which {root / 'train'} has not; give both the same folders"
            )
        return self._split(root / "train", classes), self._split(test, classes), classes

    def _split(self, folder: Path, classes: tuple[str, ...]) -> Streamed:
        with extra("images", f"data {self.kind!r}"):
            from hydraprune.data.streamed import Streamed
        files: list[str] = []
        labels: list[int] = []
        for number, name in enumerate(classes):
            found = sorted(str(file) for file in (folder / name).rglob("*") if file.suffix.lower() in SUFFIXES)
            if not found:
                raise DataError(f"{folder / name} holds no image ({', '.join(sorted(SUFFIXES))}); fill or remove it")
            files += found
            labels += [number] * len(found)
        return Streamed(files, torch.tensor(labels), self.size, flip=self.flip, workers=self.workers)
