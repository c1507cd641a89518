"""Checkpoints: plain tensors with canonical names, masks as packed bits, and JSON that says what they are."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hydraprune.core.errors import CheckpointError, SpecError
from hydraprune.core.files import load_tensors, pack_mask, read_json, save_tensors, unpack_mask, write_json
from hydraprune.core.plain import tensors
from hydraprune.core.spec import Spec
from hydraprune.core.threat import ThreatModel
from hydraprune.masks.source import FixedMask
from hydraprune.masks.view import MaskView
from hydraprune.nets import Net
from hydraprune.runs.lock import own

MODEL, MASKS, META = "model.safetensors", "masks.safetensors", "checkpoint.json"


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
        recipe: the recipe that made it.
        metrics: of its last epoch.
        versions: of the packages that made it.
        data: split -> digest of the images and labels that its run read; empty for a module that was made in Python.
        sha256: file -> digest.
    """

    net: Net | None = None
    num_classes: int | None = None
    in_channels: int | None = None
    image_size: int | None = None
    threat: ThreatModel | None = None
    pruner: str | None = None
    sparsity: float = 0.0
    kept: int = 0
    total: int = 0
    layers: dict[str, tuple[int, int]] = {}
    recipe: dict[str, Any] | None = None
    metrics: dict[str, Any] = {}
    versions: dict[str, str] = {}
    data: dict[str, str] = {}
    sha256: dict[str, str] = {}

    def facts(self) -> dict[str, Any]:
        """What a record says of the network itself."""
        return {"pruner": self.pruner, "kept": self.kept, "total": self.total, "network": self.sha256[MODEL]}


def versions() -> dict[str, str]:
    """The packages that figures depend on."""
    return {"python": platform.python_version(), **{n: version(n) for n in ("hydraprune", "torch", "numpy")}}


def save(folder: Path | str, model: nn.Module, meta: Meta | None = None) -> Meta:
    """Write `model` into `folder`, masks applied; `checkpoint.json` comes last, so a folder that has it is whole.

    `model.safetensors` holds the masked weights under the names of the plain network, whose `load_state_dict` takes
    them. Counts are measured here, over masks.

    Raises:
        BusyError: if another process is writing in the folder.
        TrainingError: if the folder cannot be written.
    """
    folder, view = Path(folder), MaskView(model)
    counts, whole = view.counts(), view.count()
    masks = view.masks()
    shapes = {name: list(mask.shape) for name, mask in masks.items()}
    with own(folder):
        save_tensors(folder / MODEL, tensors(model), {})
        save_tensors(folder / MASKS, {name: pack_mask(mask) for name, mask in masks.items()}, {"shapes": shapes})
        measured = {
            "sparsity": 1 - whole.kept / whole.total,
            "kept": whole.kept,
            "total": whole.total,
            "layers": {name: (count.kept, count.total) for name, count in counts.items()},
            "versions": versions(),
            "sha256": {name: _sha256(folder / name) for name in (MODEL, MASKS)},
        }
        meta = (meta or Meta()).model_copy(update=measured)
        write_json(folder / META, meta.plain())
    return meta


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint, whose files were read and checked once.

    Attributes:
        folder: where it lies.
        meta: what it is.
        values: canonical name -> tensor, masks applied.
        masks: canonical name -> mask (bool).
    """

    folder: Path
    meta: Meta
    values: dict[str, Tensor]
    masks: dict[str, Tensor]

    @property
    def digest(self) -> str:
        """Of the network's weights."""
        return self.meta.sha256[MODEL]

    def network(self, model: nn.Module | None = None) -> nn.Module:
        """The network with its masks attached, on the CPU; made anew at each call unless `model` is given to be filled.

        Raises:
            CheckpointError: if the checkpoint does not say which network it holds, or does not fit it.
        """
        if model is None:
            meta, where = self.meta, self.folder
            if meta.net is None or meta.num_classes is None:
                raise CheckpointError(f"{where} does not say which network it holds; pass it: load(folder, model)")
            net = meta.net.model_copy(update={"weights": None})
            model = net.build(meta.num_classes, meta.in_channels or 3, meta.image_size or 32)
        try:
            model.load_state_dict(self.values)
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
            raise CheckpointError(f"{self.folder} does not fit {type(model).__name__}: {reason}") from None
        MaskView(model).attach({name: FixedMask(mask) for name, mask in self.masks.items()})
        return model


def open_checkpoint(folder: Path | str) -> Checkpoint:
    """Read and check the checkpoint in `folder`.

    Args:
        folder: of a finished stage, or of `save`.

    Raises:
        CheckpointError: if a file is missing, truncated or altered.
    """
    folder = Path(folder)
    if not (folder / META).is_file():
        raise CheckpointError(f"{folder} holds no finished checkpoint (no {META}); give a folder such as RUN/finetune")
    try:
        meta = Meta.parse(read_json(folder / META), str(folder / META))
    except SpecError as error:
        raise CheckpointError(f"{error}; the file has been altered: restore it or train again") from None
    for name, digest in meta.sha256.items():
        if (folder / name).is_file() and _sha256(folder / name) != digest:
            raise CheckpointError(f"{folder / name} is corrupt: its checksum is not the one in {META}; restore it")
    values, _ = load_tensors(folder / MODEL)
    packed, header = load_tensors(folder / MASKS)
    masks = {name: unpack_mask(bits, tuple(header["shapes"][name])) for name, bits in packed.items()}
    return Checkpoint(folder, meta, values, masks)


def load(folder: Path | str, model: nn.Module | None = None) -> tuple[nn.Module, Meta]:
    """The network of a checkpoint folder, with its masks attached, on the CPU; and what it is.

    Args:
        folder: of a finished stage, or of `save`.
        model: the plain network to fill, for a checkpoint that names none.

    Raises:
        CheckpointError: if a file is missing, truncated or altered, or does not fit the network.
    """
    checkpoint = open_checkpoint(folder)
    return checkpoint.network(model), checkpoint.meta


def finished(folder: Path) -> bool:
    """Whether the folder holds a whole checkpoint."""
    return (folder / META).is_file()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
