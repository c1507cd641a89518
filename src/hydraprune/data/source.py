"""The contract of a data source: settings that load a data set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

from pydantic import Field, model_validator

from hydraprune.core.errors import DataError
from hydraprune.core.spec import Number, Spec
from hydraprune.data.dataset import Dataset, stratified
from hydraprune.data.extra import Extra
from hydraprune.data.images import Images


class Source(Spec, ABC):
    """Where images come from, and how many of them are used.

    Args:
        fraction: share of the training set to use, in (0, 1], the same of every class.
        samples: number of training images to use, instead of `fraction`.
        validation: share of the training images in use that is held out, in [0, 1), the same of every class.
        split_seed: decides which images are used and which held out, whatever the seed of a run.
        flip: whether augmentation mirrors images left to right.
        extra: further training images, mixed into every batch.
    """

    kind: str
    fraction: Number = Field(1.0, gt=0, le=1)
    samples: int | None = Field(None, ge=1)
    validation: Number = Field(0.1, ge=0, lt=1)
    split_seed: int = Field(0, ge=0)
    flip: bool = True
    extra: Extra | None = None

    @model_validator(mode="after")
    def _one_size(self) -> Source:
        if self.samples is not None and self.fraction != 1:
            raise ValueError(f"fraction {self.fraction:g} and samples {self.samples} exclude each other; drop one")
        return self

    @abstractmethod
    def read(self) -> tuple[Images, Images, tuple[str, ...]]:
        """The whole training set, the test set, and the names of the classes."""

    def load(self) -> Dataset:
        """Read, reduce and split the data.

        Raises:
            DataError: if it is missing or unreadable, or a class is left without training images.
        """
        full, test, classes = self.read()
        count = round(self.fraction * len(full)) if self.samples is None else self.samples
        if count > len(full):
            raise DataError(f"data.samples {count} exceeds the {len(full)} training images; lower it")
        used = full.subset(stratified(full.labels, count, self.split_seed)) if count < len(full) else full
        data = Dataset.hold_out(used, test, classes, validation=self.validation, seed=self.split_seed)
        lost = sorted(set(full.labels.tolist()) - set(data.train.labels.tolist()))
        if lost:
            raise DataError(
                f"{len(data.train)} of {len(full)} training images leave class {classes[lost[0]]!r} without any; "
                "raise data.fraction or data.samples, or lower data.validation"
            )
        return data if self.extra is None else replace(data, train=self.extra.mixed(data.train, data.num_classes))
