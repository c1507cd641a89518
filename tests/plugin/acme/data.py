"""Images that are drawn."""

from __future__ import annotations

from typing import Literal

import torch

from hydraprune.data.images import Images
from hydraprune.data.resident import Resident
from hydraprune.data.source import Source


class Stripes(Source):
    """Stripes, upright or lying, under noise."""

    kind: Literal["stripes"] = "stripes"

    def read(self) -> tuple[Images, Images, tuple[str, ...]]:
        rng = torch.Generator().manual_seed(self.split_seed)
        upright = torch.arange(8).remainder(2).float().expand(8, 8)
        labels = torch.arange(200).remainder(2)
        clean = torch.where(labels[:, None, None] == 0, upright, upright.T)[:, None]
        images = 0.25 + 0.5 * clean + 0.25 * (2 * torch.rand(clean.shape, generator=rng) - 1)
        every = Resident.from_float(images, labels)
        return every.subset(torch.arange(140)), every.subset(torch.arange(140, 200)), ("upright", "lying")
