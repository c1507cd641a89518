"""Handwritten digits that come with the package: 1,797 images.

They are the test set of E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits (UCI Machine Learning
Repository, doi:10.24432/C50P49, CC BY 4.0), in the file that scikit-learn ships: 64 grey levels and a class in
each line.
"""

from __future__ import annotations

import gzip
from importlib.resources import files
from typing import Literal

import numpy as np
import torch
from pydantic import Field

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
        packed = (files("hydraprune.data") / "files" / "digits.csv.gz").read_bytes()
        lines = torch.from_numpy(np.loadtxt(gzip.decompress(packed).decode().splitlines(), delimiter=","))
        grey = lines[:, :64].view(-1, 1, 8, 8) / 16
        digits = Resident.from_float(grey, lines[:, 64].long(), flip=self.flip, padding=self.padding)
        test = torch.zeros(len(digits), dtype=torch.bool)
        test[stratified(digits.labels, round(0.2 * len(digits)), seed=0)] = True
        train = digits.subset((~test).nonzero().flatten())
        return train, digits.subset(test.nonzero().flatten()), tuple("0123456789")
