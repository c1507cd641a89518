"""Weights that others saved, the HYDRA authors' masked checkpoints among them, read without unpickling objects."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hydraprune.core.errors import CheckpointError, SpecError
from hydraprune.core.spec import some

_SCORES = ".popup_scores"


def load_weights(model: nn.Module, path: str | Path, keep: float | None = None) -> None:
    """Load the tensors of a `.safetensors`, `.pth`, `.pt` or `.tar` file into `model`, in place.

    Takes a plain state dict or one under `state_dict` or `model`, with or without the prefixes `module.` (data
    parallel) and `net.` (normalised net). The HYDRA authors' checkpoints hold dense weights and scores, and do not say
    how many of them count: the masks that the scores give are multiplied in (see `hydra_masks`). `sub_block1` is left
    out where the model lacks it. Pruning by magnitude to the same sparsity finds these masks again.

    Args:
        keep: share of each layer that an authors' checkpoint keeps, their `k`, in (0, 1]; 1 takes the dense weights.

    Raises:
        SpecError: if `keep` is out of range.
        CheckpointError: if the file is missing, damaged, or made for another network; the model is then unchanged.
    """
    expected = model.state_dict()
    state = _renamed(_masked(read_state(path), path, keep), expected)
    state = {name: tensor for name, tensor in state.items() if name in expected or "sub_block1." not in name}
    # Files of torch before 0.4.1 do not count batches.
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in expected]
    misshapen = [
        f"{name} {tuple(tensor.shape)} for {tuple(expected[name].shape)}"
        for name, tensor in state.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    groups = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if problems := [f"{label}: {some(names)}" for label, names in groups.items() if names]:
        raise CheckpointError(
            f"{path} was made for another network; {'; '.join(problems)}. "
            "Check the net's kind, its options, the number of classes and the image size"
        )
    model.load_state_dict(state, strict=False)


def _masked(state: dict[str, Tensor], path: str | Path, keep: float | None) -> dict[str, Tensor]:
    """`state` without the authors' scores, their masks applied."""
    weights = {name: tensor for name, tensor in state.items() if not name.endswith(_SCORES)}
    if len(weights) == len(state):
        return weights
    if keep is None:
        raise CheckpointError(
            f"{path} holds scores of the HYDRA authors' code, which mask its weights; say what share of each layer it "
            "keeps, their k: `net.keep=0.1` (--set on the command line), or 1 for the dense weights"
        )
    for name, mask in hydra_masks(state, keep).items():
        if name in weights and weights[name].shape == mask.shape:
            weights[name] = weights[name] * mask
    return weights


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
    if not 0 < k <= 1:
        raise SpecError(f"k is {k}; give the kept fraction of the checkpoint, in (0, 1]")
    where = "the state dict" if isinstance(source, Mapping) else str(source)
    state = _unwrapped(source, where) if isinstance(source, Mapping) else read_state(source)
    scores = {name.removesuffix(_SCORES): score for name, score in state.items() if name.endswith(_SCORES)}
    if not scores:
        raise CheckpointError(f"{where} holds no {_SCORES[1:]!r}: it is dense; load it as weights instead")
    return {f"{layer}.weight": _largest(score.abs(), k) for layer, score in scores.items()}


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU, without the prefix `module.`.

    Raises:
        CheckpointError: if there is no such file, or it is damaged, or it holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give the path of a .safetensors, .pth, .pt or .tar checkpoint")
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damage shows in as many ways as there are bytes
        raise CheckpointError(
            f"{path} is damaged, or holds objects other than tensors, which are never unpickled "
            f"({type(error).__name__}); fetch it again, or save its state dict alone as .safetensors"
        ) from error
    return _unwrapped(content, str(path))


def _unwrapped(content: Any, where: str) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not all(map(_named_tensor, content.items())):
        raise CheckpointError(f"{where} holds no state dict; save `model.state_dict()`, bare or under `state_dict`")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def _named_tensor(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _renamed(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` as it is, without or with the prefix of a normalised net: whichever fits the model best."""
    bare = {name.removeprefix("net."): tensor for name, tensor in state.items()}
    prefixed = {f"net.{name}": tensor for name, tensor in state.items()}
    return max(state, bare, prefixed, key=lambda names: len(names.keys() & expected.keys()))


def _largest(score: Tensor, k: float) -> Tensor:
    mask = torch.ones(score.numel(), dtype=torch.bool)
    # The same rounding as in training: numel - int((1 - k) numel) stay.
    mask[score.flatten().argsort(stable=True)[: int((1 - k) * score.numel())]] = False
    return mask.view(score.shape)
