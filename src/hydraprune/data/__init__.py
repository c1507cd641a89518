"""Data sets: where images come from, how they are split, and how they reach the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hydraprune.core.lazy import lazy
from hydraprune.core.registry import Registry

if TYPE_CHECKING:
    from hydraprune.data.dataset import Dataset
    from hydraprune.data.images import Batches, Images
    from hydraprune.data.resident import Resident
    from hydraprune.data.source import Source

SOURCES: Registry[Source] = Registry(
    "dataset",
    "hydraprune.data.source:Source",
    {
        "digits": "hydraprune.data.digits:Digits",
        "cifar10": "hydraprune.data.hub:Cifar10",
        "svhn": "hydraprune.data.hub:Svhn",
        "images": "hydraprune.data.folder:Folder",
    },
)

__all__ = ["SOURCES", "Batches", "Dataset", "Images", "Resident", "Source"]

__getattr__, __dir__ = lazy(__name__, SOURCES.classes)
