"""Adversarial examples as small pictures inside the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hydraprune.core.errors import CheckpointError
from hydraprune.report.experiment import Variant
from hydraprune.runs.files import EXAMPLES

SHOWN, SIDE = 8, 96
"""Examples of each network, and the largest side of a picture in pixels."""


@dataclass(frozen=True)
class Example:
    """One image before and after: pictures are data URIs of PNG files."""

    image: str
    perturbation: str
    adversarial: str
    label: int
    prediction: int
    attacked: int


@dataclass(frozen=True)
class Gallery:
    """Examples that an attack broke in one network.

    Attributes:
        title: the network.
        attack: what found them.
        amplified: by how much the perturbations are enlarged.
        examples: the first of them.
    """

    title: str
    attack: str
    amplified: float
    examples: list[Example]

    @property
    def size(self) -> int:
        """Bytes of its pictures."""
        return sum(len(e.image) + len(e.perturbation) + len(e.adversarial) for e in self.examples)


def gallery(variant: Variant) -> Gallery | None:
    """The examples beside a network's checkpoint, of its first run that has some."""
    title = variant.title
    for network in variant.seeds:
        found = network.tensors(EXAMPLES, lambda tensors, meta: _gallery(title, tensors, meta))
        if found is not None and found.examples:
            return found
    return None


def _gallery(title: str, tensors: dict[str, Tensor], meta: dict[str, Any]) -> Gallery:
    if not _whole(tensors):
        raise CheckpointError("it holds no images and what they are taken for; measure again")
    image, adversarial = tensors["image"][:SHOWN], tensors["adversarial"][:SHOWN]
    change = adversarial - image
    factor = 0.5 / max(float(change.abs().max()) if len(change) else 0.0, 1e-6)
    verdicts = zip(*(tensors[f"{name}prediction"][:SHOWN].tolist() for name in ("", "adversarial_")), strict=True)
    labels = tensors["label"][:SHOWN].tolist()
    examples = [
        Example(_png(x), _png(0.5 + factor * (changed - x)), _png(changed), label, *verdict)
        for x, changed, label, verdict in zip(image, adversarial, labels, verdicts, strict=True)
    ]
    return Gallery(title, str(meta.get("attack", "attack")), factor, examples)


def _whole(tensors: dict[str, Tensor]) -> bool:
    """Whether it has pictures in pairs, and for each its class and what it is taken for before and after."""
    image, adversarial = (tensors.get(name, torch.zeros(0)) for name in ("image", "adversarial"))
    verdicts = [tensors.get(name, torch.zeros(0)) for name in ("label", "prediction", "adversarial_prediction")]
    pictures = image.dim() == 4 and image.shape == adversarial.shape and min(image.shape[1:]) > 0
    return (
        pictures
        and all(x.is_floating_point() and bool(x.isfinite().all()) for x in (image, adversarial))
        and all(v.shape == image.shape[:1] and v.dtype == torch.int64 for v in verdicts)
    )


def _png(image: Tensor) -> str:
    """`image` (C, H, W) in [0, 1], grey or colour, as a data URI; large ones are made smaller."""
    from PIL import Image

    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    array = pixels[0].numpy() if len(pixels) != 3 else pixels.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array)
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
