"""A data set as training needs it: three splits and the names of the classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hydraprune.core.errors import DataError
from hydraprune.core.seeds import generator
from hydraprune.data.images import Images
from hydraprune.data.resident import Resident


def stratified(labels: Tensor, count: int, seed: int) -> Tensor:
    """Indices (ascending) of `count` images drawn at random, every class in proportion.

    Smaller draws with the same seed are part of larger ones.
    """
    order = torch.randperm(len(labels), generator=generator(seed))
    grouped = order[labels[order].argsort(stable=True)]
    sizes = labels.bincount()
    own = labels[grouped]
    # The r-th of a class of n gets (r + 1/2) / n, so a prefix of the sorted values takes the same share of each class.
    place = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[own]
    share = (place.double() + 0.5) / sizes[own]
    return grouped[share.argsort(stable=True)[:count]].sort().values


@dataclass(frozen=True)
class Dataset:
    """Splits of images of one shape (C, H, W). The test split is for the final evaluation only.

    Raises:
        DataError: if a split other than validation is empty, shapes differ, or a label has no class.
    """

    train: Images
    validation: Images
    test: Images
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test"):
            split: Images = getattr(self, name)
            if not len(split) and name != "validation":
                raise DataError(f"the {name} split has no images; give at least one")
            if split.shape != self.shape:
                raise DataError(
                    f"{name} images are {split.shape}, train images {self.shape}; all splits need one shape"
                )
            if len(split) and int(split.labels.max()) >= self.num_classes:
                worst = int(split.labels.argmax())
                raise DataError(
                    f"label {int(split.labels[worst])} of {name} image {worst} is outside 0..{self.num_classes - 1}; "
                    f"classes: {', '.join(self.classes)}"
                )

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return self.train.shape

    def digests(self) -> dict[str, str]:
        """Split -> a name for its content; the same images and labels in the same order have the same."""
        return {name: getattr(self, name).digest() for name in ("train", "validation", "test")}

    def refuse_unless(self, known: Mapping[str, str], where: str) -> None:
        """See that the content is what it was.

        Args:
            known: split -> digest, as `digests` gave it; a split without one is not looked at.
            where: whose data it was, for the message.

        Raises:
            DataError: if a split has changed; it names each.
        """
        pairs = [(name, known.get(name, now), now) for name, now in self.digests().items()]
        changed = [f"{name} ({then} then, {now} now)" for name, then, now in pairs if then != now]
        if changed:
            raise DataError(
                f"the data is not what {where} was made from: other images or labels in {', '.join(changed)}; "
                "restore the files, or begin a new folder"
            )

    @classmethod
    def hold_out(
        cls, train: Images, test: Images, classes: Sequence[str], *, validation: float, seed: int = 0
    ) -> Dataset:
        """Take the share `validation` (in [0, 1)) of every class out of `train`; `seed` alone decides which images."""
        if not 0 <= validation < 1:
            raise DataError(f"validation {validation:g} is not in [0, 1); give the share of the images to hold out")
        held = stratified(train.labels, round(validation * len(train)), seed)
        kept = torch.ones(len(train), dtype=torch.bool)
        kept[held] = False
        return cls(train.subset(kept.nonzero().flatten()), train.subset(held), test, tuple(classes))

    @classmethod
    def from_tensors(
        cls,
        train: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
        *,
        validation: float = 0.1,
        classes: Sequence[str] | None = None,
        flip: bool = False,
        padding: int = 0,
        seed: int = 0,
    ) -> Dataset:
        """A data set of your own `(images, labels)`: uint8 or floats in [0, 1], (N, C, H, W), with class ids (N,).

        Args:
            validation: share of `train` that is held out.
            classes: their names; by default `0`, `1`, ... up to the largest class id.
            flip, padding: augmentation, see `Resident`.
            seed: decides which images are held out.
        """

        def resident(images: Tensor, labels: Tensor) -> Resident:
            make = Resident.from_float if images.is_floating_point() else Resident
            return make(images, labels, flip=flip, padding=padding)

        fit, final = resident(*train), resident(*test)
        if classes is None:
            classes = [str(number) for number in range(1 + int(torch.cat([fit.labels, final.labels]).max()))]
        return cls.hold_out(fit, final, classes, validation=validation, seed=seed)
