"""The contract of a format, and what it is given to write."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from torch import nn

from hydraprune.core.errors import PruningError, SpecError
from hydraprune.core.plain import plain_copy
from hydraprune.core.spec import Spec
from hydraprune.data import Dataset
from hydraprune.masks.shrink import shrink
from hydraprune.runs.checkpoint import Checkpoint
from hydraprune.runs.manifest import Manifest


@dataclass(frozen=True)
class Original:
    """What is exported.

    Attributes:
        checkpoint: the network, its masks, and what they are.
        given: the network's module, for a checkpoint that names none; it is filled.
        size: (C, H, W) of its images, for a checkpoint that does not say it.
        data: its images, for formats that measure activations and for accuracies; None without.
    """

    checkpoint: Checkpoint
    given: nn.Module | None = None
    size: tuple[int, int, int] | None = None
    data: Dataset | None = None

    @cached_property
    def network(self) -> nn.Module:
        """The plain network in evaluation mode, on the CPU, what is removed being zero.

        Raises:
            CheckpointError: if the checkpoint names no network and none was given.
        """
        return plain_copy(self.checkpoint.network(self.given)).eval()

    @cached_property
    def small(self) -> nn.Module:
        """The same without channels that do not matter to its logits; the network itself where they cannot be found."""
        try:
            return shrink(self.network, self.shape)
        except (SpecError, PruningError):
            return self.network

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of its images.

        Raises:
            SpecError: if nothing says it.
        """
        meta = self.checkpoint.meta
        if meta.in_channels is not None and meta.image_size is not None:
            return meta.in_channels, meta.image_size, meta.image_size
        if self.data is not None:
            return self.data.shape
        if self.size is None:
            raise SpecError(f"{self.checkpoint.folder} does not say how large its images are; give `shape=(C, H, W)`")
        return self.size


class Format(Spec, ABC):
    """A way to write a network into one file, or a folder.

    Attributes:
        suffix: of the file that it writes; a folder has none.
        alone: whether it is read without the code that made the network.
        needs_data: whether it is made with images of the data set.
    """

    kind: str
    suffix: ClassVar[str] = ""
    alone: ClassVar[bool] = False
    needs_data: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """What its file or folder is called by default."""
        return self.kind.replace(":", "")

    @property
    def rounds(self) -> bool:
        """Whether numbers of the network are rounded; if not, its logits are the source's to `TOLERANCE`."""
        return False

    def check(self, source: Original) -> None:
        """Raise a SpecError unless it can serve this network; the message says which formats can."""

    @abstractmethod
    def write(self, source: Original, path: Path) -> None:
        """Write the file, or the folder, `path`, which is not there yet."""

    def describe(self, source: Original, path: Path, manifest: Manifest) -> None:
        """Add to a folder what is said of it in words, once it is measured."""
        return

    def publish(self, path: Path) -> None:
        """Bring what is whole to where others find it, if that is asked for."""
        return

    def twin(self, source: Original, path: Path) -> nn.Module | None:
        """A network with gradients and the numbers of `path`, for attacks on what cannot be differentiated itself.

        None if what `opened` gives is such a network.
        """
        return None
