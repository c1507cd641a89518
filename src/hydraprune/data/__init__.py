"""Data sets: where images come from, how they are split, and how they reach the device."""

from hydraprune.core.registry import Registry
from hydraprune.data.dataset import Dataset
from hydraprune.data.images import Batches, Images
from hydraprune.data.resident import Resident
from hydraprune.data.source import Source

SOURCES = Registry(
    "dataset",
    Source,
    {
        "digits": "hydraprune.data.digits:Digits",
        "cifar10": "hydraprune.data.hub:Cifar10",
        "svhn": "hydraprune.data.hub:Svhn",
        "images": "hydraprune.data.folder:Folder",
    },
)

__all__ = ["SOURCES", "Batches", "Dataset", "Images", "Resident", "Source"]
