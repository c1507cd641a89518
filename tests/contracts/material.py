"""What the batteries feed to methods that they know only by name: images of every kind of source, and small nets."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import nn

from hydraprune.core.objective import Batch
from hydraprune.core.spec import Spec

COLUMNS = {"cifar10": "img", "svhn": "image"}
CLASSES = 10


def pictures(count: int, side: int, seed: int) -> np.ndarray:
    """(count, side, side, 3) bytes whose hue says the class."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 160, (count, side, side, 3))
    hue = np.array([[(c * 7) % 10, (c * 3) % 10, c] for c in range(CLASSES)])[np.arange(count) % CLASSES] * 10
    return (noise + hue[:, None, None, :]).astype(np.uint8)


def encoded(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def parquet(folder: Path, kind: str, side: int) -> Path:
    """A hub data set on disk: 60 training and 20 test images, every class alike."""
    folder.mkdir(parents=True)
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    for split, count in (("train", 60), ("test", 20)):
        rows = [{"bytes": encoded(image), "path": None} for image in pictures(count, side, count)]
        labels = [number % CLASSES for number in range(count)]
        table = pa.table({COLUMNS[kind]: pa.array(rows, struct), "label": labels})
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return folder


def photographs(folder: Path) -> Path:
    """An image folder: 6 training and 2 validation photographs of 70 x 50 pixels in each of 10 classes."""
    for split, each in (("train", 6), ("val", 2)):
        for number, image in enumerate(pictures(each * CLASSES, 70, each)):
            file = folder / split / f"n{number % CLASSES:08}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encoded(image[:50]))
    return folder


def settings(kind: str, folder: Path, side: int) -> dict[str, Any]:
    """How to load a source of this kind from what is written here below `folder`; a new kind needs a line."""
    place = folder / f"{kind}-{side}"
    if kind == "digits":
        return {}
    if kind in COLUMNS:
        return {"path": str(place if place.exists() else parquet(place, kind, side))}
    if kind == "images":
        return {"path": str(place if place.exists() else photographs(place)), "size": side, "workers": 0}
    raise NotImplementedError(f"say in tests/contracts/material.py how to make images for the source {kind!r}")


def quick(method: type[Spec], few: int = 2) -> Spec:
    """A method with its defaults, but with few steps."""
    settings = {"steps": few, "restarts": 1}
    return method(**{name: value for name, value in settings.items() if name in method.model_fields})


def net() -> nn.Sequential:
    """For images (1, 8, 8): convolutions, norm and linear layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def batch(size: int = 16) -> Batch:
    """Random images (B, 1, 8, 8) and labels."""
    rng = torch.Generator().manual_seed(size)
    return Batch(torch.rand(size, 1, 8, 8, generator=rng), torch.arange(size) % CLASSES)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a method may not change: tensors, modes, flags and gradients."""
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "flags": [p.requires_grad for p in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
    }


def unchanged(model: nn.Module, before: dict[str, Any], *, but_statistics: bool = False) -> bool:
    """Whether `model` is as it was; with `but_statistics`, norm layers may have seen batches."""
    after = snapshot(model)
    moving = ("running_mean", "running_var", "num_batches_tracked") if but_statistics else ()
    return (
        before["modes"] == after["modes"]
        and before["flags"] == after["flags"]
        and before["state"].keys() == after["state"].keys()
        and all(n.endswith(moving or "\n") or torch.equal(v, after["state"][n]) for n, v in before["state"].items())
        and all(
            (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
            for a, b in zip(before["gradients"], after["gradients"], strict=True)
        )
    )
