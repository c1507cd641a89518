"""The handwritten digits that come with scikit-learn: 1,797 images, no download."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from sklearn.datasets import load_digits

from hydraprune.data.dataset import stratified
from hydraprune.data.images import Images
from hydraprune.data.resident import Resident
from hydraprune.data.source import Source


class Digits(Source):
    """Ten digits, 8x8 in one channel, of 17 grey levels. A fixed fifth of every class is the test set.

    Args:
        padding: augmentation crops from the image framed with this many zeros.
    """

    kind: Literal["digits"] = "digits"
    flip: bool = False
    padding: int = Field(1, ge=0)

    def read(self) -> tuple[Images, Images, tuple[str, ...]]:
        bunch = load_digits()
        grey = torch.from_numpy(bunch.images)[:, None] / 16
        digits = Resident.from_float(grey, torch.from_numpy(bunch.target), flip=self.flip, padding=self.padding)
        test = torch.zeros(len(digits), dtype=torch.bool)
        test[stratified(digits.labels, round(0.2 * len(digits)), seed=0)] = True
        train = digits.subset((~test).nonzero().flatten())
        return train, digits.subset(test.nonzero().flatten()), tuple("0123456789")
