"""Checkpoints: plain tensors with canonical names, masks as packed bits, and JSON that says what they are.

`checkpoint.json` holds the digests of the two files of tensors, and one of itself as `core/sealed.py` says, so that any
program can check it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hydraprune.core.errors import CheckpointError, SpecError
from hydraprune.core.files import inside, read_json, write_json
from hydraprune.core.network import device_of
from hydraprune.core.plain import tensors
from hydraprune.core.tensors import load_tensors, pack_mask, save_tensors, unpack_mask
from hydraprune.masks.resized import resize
from hydraprune.masks.view import LayerCount, MaskView
from hydraprune.nets import Net
from hydraprune.runs import single
from hydraprune.runs.files import MASKS, META, MODEL, PACKED, PACKED_SUFFIX, finished, refuse_graph, refuse_unfinished
from hydraprune.runs.fill import fill, misfit
from hydraprune.runs.lock import own
from hydraprune.runs.meta import Meta, measured, sha256, versions
from hydraprune.runs.named import located

PARTS, ROOM = 32, 8
"""A network has at most so many modules and parameters for each tensor of its file, and takes so much more memory."""
SPARE = 1000, 2**28
"""What any network may have of them beside: parts, and bytes."""


def save(folder: Path | str, model: nn.Module, meta: Meta | None = None) -> Meta:
    """Write `model` into `folder`, masks applied; `checkpoint.json` comes last, so a folder that has it is whole.

    `model.safetensors` holds the masked weights under the names of the plain network, whose `load_state_dict` takes
    them, also those of a compiled model. Counts are measured here, over masks.

    Raises:
        SpecError: for arguments in another order, and for a model on the meta device or with lazy layers.
        PruningError: for a model without prunable weights.
        BusyError: if another process is writing in the folder.
        TrainingError: if the folder cannot be written.
    """
    folder = _folder(folder, "save(folder, model)")
    if not isinstance(model, nn.Module):
        raise SpecError(f"save(folder, model) takes a network second, got {type(model).__name__}")
    device_of(model)
    view = MaskView(model)
    masks = view.masks()
    shapes = {name: list(mask.shape) for name, mask in masks.items()}
    with own(folder):
        save_tensors(folder / MODEL, tensors(model), {})
        save_tensors(folder / MASKS, {name: pack_mask(mask) for name, mask in masks.items()}, {"shapes": shapes})
        made = {"versions": versions(), "sha256": {name: sha256(folder / name) for name in (MODEL, MASKS)}}
        meta = (meta or Meta()).model_copy(update=measured(view.counts()) | made)
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
        trusted: whether the factory that it names may be imported and called.
    """

    folder: Path
    meta: Meta
    values: dict[str, Tensor]
    masks: dict[str, Tensor]
    trusted: bool = False

    @property
    def digest(self) -> str:
        """Of the network's weights."""
        return self.meta.sha256[MODEL]

    def calls(self) -> str | None:
        """The code outside of the package that `network` imports and calls, in words; None if there is none.

        Raises:
            CheckpointError: if there is, and the checkpoint was not opened with `trust_code`.
        """
        calls = None if self.meta.net is None else self.meta.net.calls
        if calls is not None and not self.trusted:
            raise CheckpointError(
                f"{self.folder} would import and call {calls}; if you trust whoever made it, say so: "
                "--trust-code, or trust_code=True in Python"
            )
        return calls

    def network(self, model: nn.Module | None = None) -> nn.Module:
        """The network with its masks attached, on the CPU; made anew at each call unless `model` is given to be filled.

        Raises:
            CheckpointError: if the checkpoint does not say which network it holds, would call code that is not trusted,
                or does not fit its network; a `model` that was given is then unchanged.
            PruningError: if something else than masks computes a weight of `model`.
        """
        if model is not None and not isinstance(model, nn.Module):
            raise SpecError(f"load(folder, model) takes a network second, got {type(model).__name__}")
        if model is not None and self.meta.shrunk:
            raise CheckpointError(f"{self.folder} holds a network whose layers were shrunk; load it without a model")
        model = self._made() if model is None else model
        fill(model, self.values, self.masks, self.meta.layers, str(self.folder))
        return model

    def _made(self) -> nn.Module:
        """The plain network; one that does not fit is found out before it takes memory."""
        meta, where = self.meta, self.folder
        if meta.net is None or meta.num_classes is None:
            raise CheckpointError(f"{where} does not say which network it holds; pass it: load(folder, model)")
        net = meta.net.model_copy(update={"weights": None, "init": None})
        shape = meta.num_classes, meta.in_channels or 3, meta.image_size or 32
        image = shape[1], shape[2], shape[2]
        sizes = {name: tuple(value.shape) for name, value in self.values.items()} if meta.shrunk else {}
        if self.calls() is None:
            try:
                sketch = net.sketch(*shape, parts=PARTS * len(self.values) + SPARE[0])
            except SpecError as error:
                raise CheckpointError(f"{where} names a network that cannot be made: {error}") from None
            taken = sum(tensor.nbytes for tensor in (*sketch.parameters(), *sketch.buffers()))
            try:
                if sizes:
                    resize(sketch, sizes, image)
                problem = misfit(sketch.state_dict(), self.values)
            except CheckpointError as error:
                problem = str(error)
            if problem:
                raise CheckpointError(f"{where} does not fit {net.kind}: {problem}")
            if taken > ROOM * sum(value.nbytes for value in self.values.values()) + SPARE[1]:
                raise CheckpointError(f"{where} does not fit {net.kind}: that takes far more memory than its file")
        model = net.build(*shape)
        if sizes:
            resize(model, sizes, image)
        return model


def open_checkpoint(folder: Path | str, trust_code: bool | Net = False) -> Checkpoint:
    """Read and check the checkpoint in `folder`.

    Args:
        folder: of a finished stage, or of `save`; or one file that `export` wrote of it.
        trust_code: whether a factory that it names, `package.module:factory`, may be imported and called to make its
            network; a `Net` trusts that one alone. What is built in or comes from timm needs no trust.

    Raises:
        CheckpointError: if a file is missing, truncated, altered, or lies elsewhere.
    """
    folder = _folder(folder, "load(folder, model)")
    if folder.is_file():
        return _open_file(folder, trust_code)
    if folder.name in ("", ".."):
        folder = folder.resolve()  # which has a name
    if (folder / PACKED).is_file() and not finished(folder):
        return _open_file(inside(folder, folder / PACKED), trust_code)
    refuse_unfinished(folder)
    meta = _read_meta(inside(folder, folder / META))
    for name in (MODEL, MASKS):
        file = inside(folder, folder / name)
        if not file.is_file():
            raise CheckpointError(f"{file} is missing; give the folder of a finished stage, such as RUN/finetune")
        if sha256(file) != meta.sha256[name]:
            raise CheckpointError(f"{file} is corrupt: its checksum is not the one in {META}; restore it")
    values, _ = load_tensors(folder / MODEL)
    packed, header = load_tensors(folder / MASKS)
    masks = unpacked(packed, header)
    return _checked(folder, meta, values, masks, trust_code)


def _open_file(file: Path, trust_code: bool | Net) -> Checkpoint:
    if file.suffix not in (PACKED_SUFFIX, ".safetensors") and not single.ours(file):
        refuse_graph(file)
        raise CheckpointError(
            f"{file} is no checkpoint of hydraprune's, or is damaged; if others made it, import it: "
            "`hydraprune import FILE --net NAME --out FOLDER`"
        )
    found = single.read(file)
    try:
        meta = Meta.parse(found.meta, str(file))
    except SpecError as error:
        raise _altered(file, str(error)) from None
    # Of the file: rounded weights are other ones than those of the folder that they come from.
    meta = meta.model_copy(update={"sha256": dict.fromkeys((MODEL, MASKS), found.digest)})
    return _checked(file, meta, found.values, found.masks, trust_code)


def _checked(
    where: Path, meta: Meta, values: dict[str, Tensor], masks: dict[str, Tensor], trust_code: bool | Net
) -> Checkpoint:
    _agree(where, meta, values, masks)
    trusted = trust_code == meta.net if isinstance(trust_code, Net) else trust_code
    return Checkpoint(where, meta, values, masks, trusted)


def load(folder: Path | str, model: nn.Module | None = None, *, trust_code: bool = False) -> tuple[nn.Module, Meta]:
    """The network of a checkpoint, with its masks attached, on the CPU; and what it is.

    Args:
        folder: of a finished stage, or of `save`; one file that `export` wrote of it; `zoo:NAME`, which comes with the
            package; or `OWNER/NAME` on the Hugging Face hub, where nothing lies at that path (see `located`).
        model: the network to fill in place, for a checkpoint that names none: plain, masked or compiled.
        trust_code: import and call the factory, `package.module:factory`, that a checkpoint may name. It runs whatever
            whoever wrote the checkpoint chose.

    Raises:
        SpecError: for arguments in another order.
        CheckpointError: if a file is missing, truncated or altered, cannot be fetched, does not fit the network, or
            names a factory and `trust_code` is False. `model` is then unchanged.
    """
    checkpoint = open_checkpoint(located(folder), trust_code)
    return checkpoint.network(model), checkpoint.meta


def read_digests(path: Path) -> dict[str, str]:
    """Split -> digest, as a run's `data.json` has it.

    Raises:
        CheckpointError: if the file is damaged.
    """
    remedy = "remove it if the data is what it was"
    found = read_json(path, remedy)
    if not isinstance(found, dict) or not all(isinstance(digest, str) for digest in found.values()):
        raise CheckpointError(f"{path} holds no digests of splits; {remedy}")
    return found


def unpacked(packed: Mapping[str, Tensor], header: Mapping[str, Any]) -> dict[str, Tensor]:
    """Canonical name -> mask, of the content of `masks.safetensors`.

    Raises:
        CheckpointError: if the shapes in its header are not those of its bits.
    """
    shapes = header.get("shapes")
    if not isinstance(shapes, dict) or shapes.keys() != packed.keys() or not all(map(_is_list, shapes.values())):
        raise CheckpointError(f"{MASKS} does not give a shape for each of its masks; restore it or train again")
    try:
        return {name: unpack_mask(bits, tuple(shapes[name])) for name, bits in packed.items()}
    except CheckpointError as error:
        raise CheckpointError(f"{MASKS}: {error}") from None


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _folder(folder: Path | str, usage: str) -> Path:
    if not isinstance(folder, Path | str):
        raise SpecError(f"{usage} takes a folder first, got {type(folder).__name__}")
    return Path(folder)


def _read_meta(path: Path) -> Meta:
    entries = read_json(path, "restore it or train again", sealed=True)
    if not isinstance(entries, dict):
        raise _altered(path, "it holds no mapping")
    try:
        meta = Meta.parse(entries, str(path))
    except SpecError as error:
        raise _altered(path, str(error)) from None
    if meta.sha256.keys() != {MODEL, MASKS}:
        raise _altered(path, f"sha256 must name {MODEL} and {MASKS}, and nothing else")
    return meta


def _agree(folder: Path, meta: Meta, values: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """See that what is said of the tensors is true."""
    for name, mask in masks.items():
        if name not in meta.layers or name not in values or values[name].shape != mask.shape:
            raise _altered(folder, f"its mask for {name!r} is not that of a weight")
        if bool(values[name][~mask].any()):
            raise _altered(folder, f"weights of {name!r} that its mask removes are not zero")
    counts = {}
    for name in meta.layers:
        if name not in values or values[name].dim() < 2:
            raise _altered(folder, f"{name!r} in its table of layers is no prunable weight")
        total = values[name].numel()
        counts[name] = LayerCount(int(masks[name].sum()) if name in masks else total, total)
    if not any(n.total for n in counts.values()) or any(
        getattr(meta, key) != value for key, value in measured(counts).items()
    ):
        raise _altered(folder, f"its weights and masks are not as sparse as {META} says")


def _altered(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} has been altered: {why}; restore it or train again")
