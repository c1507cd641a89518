"""What a checkpoint says of itself."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import Field

from hydraprune.core.spec import Spec
from hydraprune.core.threat import ThreatModel
from hydraprune.masks.view import LayerCount
from hydraprune.nets import Net
from hydraprune.runs.files import MODEL


class Meta(Spec):
    """What a checkpoint is.

    Args:
        net: the network's spec; None for a module that was made in Python, which must be made again to load it.
        num_classes: classes.
        in_channels: channels of an image.
        image_size: side of an image.
        threat: the adversary it was trained against.
        pruner: how its connections were chosen; None if it is dense.
        sparsity: removed / total over prunable weights.
        kept: prunable weights left.
        total: prunable weights of the dense network.
        layers: name -> [kept, total].
        shrunk: whether channels that do not matter are gone, so that layers are smaller than `net` makes them.
        recipe: the recipe that made it.
        metrics: of its last epoch.
        versions: of the packages that made it.
        data: split -> digest of the images and labels that its run read; empty for a module that was made in Python.
        origin: of another program's checkpoint: its `file`, that file's `sha256`, and as which `layout` it was read.
        sha256: file -> digest, of the two files of tensors.
    """

    net: Net | None = None
    num_classes: int | None = Field(default=None, ge=1)
    in_channels: int | None = Field(default=None, ge=1)
    image_size: int | None = Field(default=None, ge=1)
    threat: ThreatModel | None = None
    pruner: str | None = None
    sparsity: float = 0.0
    kept: int = 0
    total: int = 0
    layers: dict[str, tuple[int, int]] = {}
    shrunk: bool = False
    recipe: dict[str, Any] | None = None
    metrics: dict[str, Any] = {}
    versions: dict[str, str] = {}
    data: dict[str, str] = {}
    origin: dict[str, str] = {}
    sha256: dict[str, str] = {}

    def facts(self) -> dict[str, Any]:
        """What a record says of the network itself."""
        return {"pruner": self.pruner, "kept": self.kept, "total": self.total, "network": self.sha256[MODEL]}


def versions() -> dict[str, str]:
    """The packages that figures depend on."""
    return {"python": platform.python_version(), **{n: version(n) for n in ("hydraprune", "torch", "numpy")}}


def measured(counts: Mapping[str, LayerCount]) -> dict[str, Any]:
    """What `checkpoint.json` says of these counts."""
    kept, total = (sum(values) for values in zip(*((n.kept, n.total) for n in counts.values()), strict=True))
    layers = {name: (count.kept, count.total) for name, count in counts.items()}
    return {"sparsity": 1 - kept / total, "kept": kept, "total": total, "layers": layers}


def sha256(path: Path) -> str:
    """Digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
