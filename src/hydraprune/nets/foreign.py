"""Weights that others saved, the HYDRA authors' masked checkpoints among them, for a network that is there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hydraprune.core.errors import CheckpointError
from hydraprune.core.spec import some
from hydraprune.nets.layouts import SCORES, Plain, plain, scores_in, share, uniform
from hydraprune.nets.normalize import Normalize
from hydraprune.nets.saved import read_state, unwrapped

PREFIXES = ("net.", "model.")
"""What wrappers put before the name of every tensor: ours that normalises, and others'."""
DEAD = "sub_block1."
"""A group of the HYDRA authors' wide residual networks that no image passes through."""


def load_weights(model: nn.Module, path: str | Path, keep: float | None = None) -> None:
    """Load the tensors of a `.safetensors`, `.pth`, `.pt` or `.tar` file into `model`, in place.

    Takes a plain state dict or one under `state_dict` or `model`, with or without the prefixes `module.` (data
    parallel), `model.` and `net.` (normalised net), in any of the `layouts` that can be recognised. The HYDRA authors'
    checkpoints hold dense weights and scores, and do not say how many of them count: the masks that the scores give are
    multiplied in (see `hydra_masks`). `sub_block1` is left out where the model lacks it. Pruning by magnitude to the
    same sparsity finds these masks again.

    Args:
        keep: share of each layer that an authors' checkpoint keeps, their `k`, in (0, 1]; 1 takes the dense weights.

    Raises:
        SpecError: if `keep` is out of range.
        CheckpointError: if the file is missing, damaged, or made for another network; the model is then unchanged.
    """
    expected, where = model.state_dict(), str(path)
    found = fitted(plain(read_state(path), expected, where, keep=keep), expected, where)
    own = getattr(model, "normalize", None)
    if found.normalize is not None and not (isinstance(own, Normalize) and own.is_by(*found.normalize)):
        mean, std = found.normalize
        raise CheckpointError(
            f"{where} normalises images otherwise; give the net `normalize: {{mean: {mean}, std: {std}}}`"
        )
    model.load_state_dict(found.tensors, strict=False)


def fitted(found: Plain, expected: Mapping[str, Tensor], where: str) -> Plain:
    """The same under the names of a network, without what the network lacks for a reason.

    Args:
        found: weights and masks.
        expected: the network's state dict, on any device.
        where: what they come from, for errors.

    Raises:
        CheckpointError: if they were made for another network.
    """
    rename = _rename(found.tensors, expected)
    dead = [name for name in found.tensors if rename(name) not in expected and DEAD in name]
    tensors = {rename(name): tensor for name, tensor in found.tensors.items() if name not in dead}
    masks = {rename(name): mask for name, mask in found.masks.items() if name not in dead}
    if len(tensors) < len(found.tensors) - len(dead):
        raise CheckpointError(f"{where} holds tensors twice, under names that differ in a prefix; keep one of each")
    # Files of torch before 0.4.1 do not count batches.
    missing = [name for name in expected if name not in tensors and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in tensors if name not in expected]
    misshapen = [
        f"{name} {tuple(tensor.shape)} for {tuple(expected[name].shape)}"
        for name, tensor in tensors.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    groups = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if problems := [f"{label}: {some(names)}" for label, names in groups.items() if names]:
        raise CheckpointError(
            f"{where} was made for another network; {'; '.join(problems)}. "
            "Check the net's kind, its options, the number of classes and the image size"
        )
    notes = [f"left out: {len(dead)} tensors of {DEAD[:-1]}, through which no image passes"] if dead else []
    if changed := [f"{name} as {rename(name)}" for name in found.tensors if rename(name) != name and name not in dead]:
        notes.append(f"renamed: {some(changed, 1)}")
    return replace(found, tensors=tensors, masks=masks, notes=(*found.notes, *notes))


def hydra_masks(source: str | Path | Mapping[str, Any], k: float) -> dict[str, Tensor]:
    """The masks of a HYDRA authors' checkpoint, given as its path or as what it holds.

    Args:
        k: kept fraction of each layer, in (0, 1]; the checkpoints do not store it.

    Returns:
        Weight name in the bare net -> bool mask of the weight's shape, True stays. Each layer of n weights loses the
        int((1 - k) n) with the smallest absolute scores; of equal ones those with the smaller flat index. In nets
        with the unused group `sub_block1`, its masks are among them.

    Raises:
        CheckpointError: if the file cannot be read or holds no scores.
        SpecError: if `k` is out of range.
    """
    share(k)
    where = "the state dict" if isinstance(source, Mapping) else str(source)
    state = unwrapped(source, where) if isinstance(source, Mapping) else read_state(source)
    scores = scores_in(state)
    if not scores:
        raise CheckpointError(f"{where} holds no {SCORES[1:]!r}: it is dense; load it as weights instead")
    return uniform(scores, k)


def _rename(names: Collection[str], expected: Collection[str]) -> Callable[[str], str]:
    """How names become those of a network, with or without the prefix of a wrapper: whichever fits best."""

    def renamed(stripped: str, added: str) -> Callable[[str], str]:
        return lambda name: added + name.removeprefix(stripped)

    ways = [renamed(stripped, added) for added in ("", PREFIXES[0]) for stripped in ("", *PREFIXES)]
    return max(ways, key=lambda way: len({way(name) for name in names} & set(expected)))
