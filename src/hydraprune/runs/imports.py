"""Other people's checkpoints, made into ours: a folder that every command takes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hydraprune.core.batches import logits_of
from hydraprune.core.errors import CheckpointError, DataError, SpecError
from hydraprune.core.files import output_folder
from hydraprune.core.plain import evaluating
from hydraprune.core.spec import nearest, some
from hydraprune.masks.view import MaskView
from hydraprune.nets import Net, names
from hydraprune.nets.foreign import fitted
from hydraprune.nets.layouts import LAYOUTS, Plain, plain
from hydraprune.nets.normalize import Normalization
from hydraprune.nets.saved import found_in, read_state
from hydraprune.nets.spec import LIBRARIES
from hydraprune.runs.checkpoint import Checkpoint, open_checkpoint, save
from hydraprune.runs.files import MASKS, META, MODEL, PACKED, finished, refuse_graph
from hydraprune.runs.fill import fill
from hydraprune.runs.meta import Meta
from hydraprune.runs.named import located
from hydraprune.runs.single import ours

PARTS = 100_000
"""A network that might fit has at most so many modules and parameters."""


@dataclass(frozen=True)
class Imported:
    """What became of a foreign checkpoint.

    Attributes:
        meta: of the checkpoint that was written.
        notes: what was recognised, left out, renamed and guessed, a sentence each.
    """

    meta: Meta
    notes: list[str]


def import_checkpoint(
    source: Path | str,
    folder: Path | str,
    net: Net | Mapping[str, Any] | str | None = None,
    *,
    layout: str = "auto",
    keep: float | None = None,
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    trust_code: bool = False,
) -> Imported:
    """Write a foreign checkpoint into `folder` as one of ours, with masks: `load` and all commands take it.

    Masks are those that the file's scores give, or else the weights that are not 0. Values become float32.

    Args:
        source: a `.safetensors` file or one that `torch.save` wrote; or a folder with one of them in it; or what
            `export` wrote; or one of the zoo or the hub, by the names that `load` takes; or a folder that `save` wrote
            without saying which network it holds.
        folder: where to, without a checkpoint in it, or a file that would be replaced.
        net: the network, such as `vgg16_bn`, or its settings; with a `layout` of a library, its network of this name.
            Without `normalize` it has the constants that the file may hold. One of ours knows its network.
        layout: `hydra`, `harp`, `benchmark`, `robustbench`, `torchvision`, `timm`; `auto` recognises it.
        keep: share of the weights that scores keep, in (0, 1], which files do not say: of each layer with HYDRA's, of
            the network with HARP's; 1 takes the weights dense. None for files without scores.
        num_classes: of the network.
        in_channels: of its images.
        image_size: side of its images.
        trust_code: import and call the factory that one of ours may name; see `load`.

    Raises:
        SpecError: for an unknown layout or network, a network that takes other images or has other classes than was
            said, a share out of range, or a folder that holds a checkpoint or somebody else's file of a name that is
            written.
        CheckpointError: if the file is missing, damaged or ambiguous, was made for another network, holds numbers that
            are not finite, or does not say what `keep` does.
    """
    folder = output_folder(folder)
    if finished(folder):
        raise SpecError(f"{folder} holds a checkpoint already ({META}); choose another folder")
    if finished(Path(source)):
        return _named(open_checkpoint(source, trust_code), folder, net, layout, (num_classes, in_channels, image_size))
    refuse_graph(Path(source))
    place = Path(located(source))
    for file in (folder / MODEL, folder / MASKS):
        if file.exists() and (not ours(file) or file.samefile(place)):
            raise SpecError(f"{file} is there already, and would be replaced; choose another folder")
    if ours(place) or ours(place / PACKED) or finished(place):
        own = open_checkpoint(place, trust_code)
        return Imported(save(folder, own.network(), own.meta), ["read as one of ours"])
    if net is None:
        raise SpecError(f"{source} does not say which network it is of; give it: --net vgg16_bn, or `net=`")
    spec, file = _net(net, layout), found_in(place)
    sizes, where = (num_classes, in_channels, image_size), str(file)
    model = spec.build(*sizes)
    read = plain(read_state(file), model.state_dict(), where, layout, keep)
    notes = []
    if read.normalize is not None and spec.normalize is None:
        spec = _normalized(spec, *read.normalize, where)
        model = spec.build(*sizes)
        notes.append(f"the network normalises images as the file says: mean and deviation {read.normalize}")
    elif read.normalize is not None:
        notes.append(f"left out: the file's mean and deviation {read.normalize}, for those that were given")
    found = _fitted(read, model.state_dict(), where, spec, sizes)
    for name, tensor in found.tensors.items():
        if not bool(tensor.float().isfinite().all()):
            raise CheckpointError(f"{where}: {name!r} has values that float32 cannot hold; fetch the file again")
    if keep is not None and not read.masks:
        notes.append(f"left out: the share to keep, {keep:g}, as the file has no scores")
    view = MaskView(model)
    masks = {name: mask for name, mask in found.masks.items() if name in view.modules}
    zeros = {name: found.tensors[name] != 0 for name in view.modules if name not in masks}
    zeros = {name: mask for name, mask in zeros.items() if not bool(mask.all())}
    if zeros:
        notes.append(f"guessed: weights that are 0 are removed, in {len(zeros)} layers")
    masks |= zeros
    fill(model, model.state_dict() | found.tensors, masks, view.modules, where)
    _try(model, sizes, where)
    meta = Meta(
        net=spec, num_classes=num_classes, in_channels=in_channels, image_size=image_size,
        pruner=(found.pruner or "imported") if masks else None,
        origin={"file": file.name, "sha256": _digest(file), "layout": read.layout},
    )  # fmt: skip
    return Imported(save(folder, model, meta), [*found.notes, *notes])


def _named(
    own: Checkpoint, folder: Path, net: Net | Mapping[str, Any] | str | None, layout: str, sizes: tuple[int, int, int]
) -> Imported:
    """One of ours that does not say which network it holds, as `save` leaves it, with its network."""
    if own.meta.net is not None or net is None:
        remedy = "load it as it is" if own.meta.net is not None else "say which network it holds: --net, or `net=`"
        raise SpecError(f"{own.folder} is a checkpoint of hydraprune's own ({META}); {remedy}")
    spec = _net(net, layout)
    model = own.network(spec.build(*sizes))
    _try(model, sizes, str(own.folder))
    names = dict(zip(("num_classes", "in_channels", "image_size"), sizes, strict=True))
    return Imported(save(folder, model, own.meta.model_copy(update={"net": spec, **names})), ["read as one of ours"])


def _try(model: nn.Module, sizes: tuple[int, int, int], where: str) -> None:
    """See that the network takes such images: a factory may not know the sizes that it is asked for."""
    classes, channels, side = sizes
    with evaluating(model):
        try:
            found = logits_of(model, torch.zeros(1, channels, side, side), torch.zeros(1, dtype=torch.int64))
        except DataError as error:
            raise SpecError(f"{where}: {error}: --in-channels, --image-size") from None
    if found.shape[1] != classes:
        raise SpecError(f"{where}: the network has {found.shape[1]} classes, not {classes}; say so: --num-classes")


def _net(net: Net | Mapping[str, Any] | str, layout: str) -> Net:
    if layout not in (*LAYOUTS, "auto"):
        raise SpecError(f"there is no format {layout!r}; {nearest(layout, [*LAYOUTS, 'auto'])}")
    given = {"kind": net} if isinstance(net, str) else net
    if isinstance(given, Mapping) and f"{layout}:" in LIBRARIES and ":" not in str(given.get("kind")):
        given = {**given, "kind": f"{layout}:{given.get('kind')}"}
    spec = Net.make(given, "net")
    if spec.weights is not None or spec.init is not None:
        raise SpecError("net has weights or an init of its own; leave them out, as the checkpoint brings the weights")
    return spec


def _normalized(spec: Net, mean: list[float], std: list[float], where: str) -> Net:
    try:
        constants = Normalization.parse({"mean": mean, "std": std}, where)
    except SpecError as error:
        raise CheckpointError(f"{error}; it does not normalise pixels in [0, 1]: give `normalize` yourself") from None
    return spec.model_copy(update={"normalize": constants})


def _fitted(read: Plain, expected: Mapping[str, Tensor], where: str, spec: Net, sizes: tuple[int, int, int]) -> Plain:
    """The same under the names of the network; if it is another one, the error names built-in ones that it fits."""
    try:
        return fitted(read, expected, where)
    except CheckpointError as error:
        fitting = [name for name in names() if name != spec.kind and _fits(read, Net(kind=name), sizes)]
        if not fitting:
            raise
        raise CheckpointError(f"{error}; it fits {some(fitting)}") from None


def _fits(read: Plain, spec: Net, sizes: tuple[int, int, int]) -> bool:
    try:
        fitted(read, spec.sketch(*sizes, parts=PARTS).state_dict(), "")
    except (CheckpointError, SpecError):
        return False
    return True


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
