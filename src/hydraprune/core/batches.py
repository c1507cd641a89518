"""Images and labels on their way into training and evaluation, in whatever form users have them, and their logits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hydraprune.core.errors import DataError, HydrapruneError, SpecError
from hydraprune.core.objective import Batch
from hydraprune.core.spec import said

AT_ONCE = 500
"""Images of a batch in evaluation, where they come without one."""

_FORMS = "a DataLoader of (images, labels), data.train.batches(128, seed=0, shuffle=True), or a list of pairs"


class Epochs(Protocol):
    """Training data: `epoch(n)` must be a pure function of `n`, so that an epoch can be run again."""

    def __len__(self) -> int:
        """Batches per epoch."""

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of epoch `number`, shuffled and augmented."""


@dataclass(frozen=True)
class _Reread:
    """A DataLoader, or whatever else can be read again and again, as `Epochs`.

    A loader shuffles by torch's global generator, or by one of its own; that one is seeded as the global one was.
    """

    source: Any

    def __len__(self) -> int:
        return len(self.source)

    def epoch(self, number: int) -> Iterator[Any]:
        sampler: Any = getattr(self.source, "sampler", None)
        for generator in (getattr(self.source, "generator", None), getattr(sampler, "generator", None)):
            if isinstance(generator, torch.Generator):
                generator.manual_seed(torch.initial_seed())
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(number)
        return iter(self.source)


def passes(data: Any) -> Epochs:
    """`data` as it is read in training, epoch after epoch: batches of ours, or anything that yields pairs each time.

    Raises:
        DataError: for what can be read once only, has no length, holds nothing, or is not in batches.
    """
    if hasattr(data, "epoch") and hasattr(data, "__len__"):
        found: Epochs = data
    elif hasattr(data, "batches"):
        raise DataError(
            f"{type(data).__name__} is not in batches; write data.train.batches(128, seed=0, shuffle=True, "
            "augment=True), or with your own batch size"
        )
    elif _is_pair(data):
        raise DataError("one pair of images and labels is not in batches; give a DataLoader, or a list of pairs")
    elif isinstance(data, Iterator):
        raise DataError(f"a {type(data).__name__} can be read only once, but every epoch reads the data; give {_FORMS}")
    elif not isinstance(data, Iterable) or isinstance(data, str | Mapping | Tensor):
        raise DataError(f"{said(data)} holds no batches; give {_FORMS}")
    else:
        found = _Reread(data)
    try:
        count = len(found)
    except TypeError:
        raise DataError(
            f"{type(data).__name__} does not say how many batches an epoch has, which the learning rate follows; "
            "give it a length"
        ) from None
    if not count:
        raise DataError("there are no batches to train on; give at least one")
    return found


def one_pass(data: Any) -> Iterable[Any]:
    """The batches of `data` as they are read once, in evaluation, each still to be `checked`.

    Args:
        data: a split such as `data.test`, batches of ours, one pair of images and labels, or an iterable of pairs.

    Raises:
        DataError: for anything else.
    """
    if hasattr(data, "epoch"):
        found: Iterable[Any] = data.epoch(0)
    elif hasattr(data, "batches"):
        found = data.batches(AT_ONCE, seed=0).epoch(0)
    elif _is_pair(data):
        found = [data]
    elif isinstance(data, Iterable) and not isinstance(data, str | Mapping | Tensor):
        found = data
    else:
        raise DataError(
            f"{said(data)} holds no batches; give data.test, one pair of images and labels, or a DataLoader of such"
        )
    return found


def checked(batch: Any, device: torch.device, dtype: torch.dtype = torch.float32) -> Batch:
    """A batch, given as a pair of images and labels, on `device`, the images as `dtype` and the labels as int64.

    Raises:
        DataError: unless it holds float images (B, C, H, W) in [0, 1] and as many class ids.
    """
    if not _is_pair(batch):
        raise DataError(f"a batch is a pair of tensors (images, labels), got {said(batch)}; make it one")
    x, y = batch[0].to(device), batch[1].to(device)
    if x.dim() == 3 and y.dim() == 0:
        raise DataError(
            f"got one image {tuple(x.shape)} at a time; give batches (B, C, H, W), such as DataLoader(dataset, 500)"
        )
    if x.dim() != 4 or len(x) == 0:
        raise DataError(f"expected images (B, C, H, W) and labels (B,), got {tuple(x.shape)} and {tuple(y.shape)}")
    if not x.is_floating_point():
        raise DataError(f"expected float images in [0, 1], got {x.dtype}; write x.float() / 255 for bytes")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or y.shape != x.shape[:1]:
        raise DataError(
            f"labels are {y.dtype} {tuple(y.shape)}; give one integer class id for each of {len(x)} images, "
            "such as y.argmax(1) of a one-hot row"
        )
    # One look at both ends, as every look waits for the device.
    lowest, highest = torch.stack(x.aminmax()).tolist()
    if not (lowest >= 0 and highest <= 1):
        raise DataError(
            f"pixels must lie in [0, 1], found {lowest:g} to {highest:g}; divide bytes by 255, and make "
            "normalisation a layer of the network"
        )
    return Batch(x.to(dtype), y.to(torch.int64))


def logits_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Logits (B, K) of `x` (B, C, H, W), without gradient; `y` (B,) only for the range of labels.

    Raises:
        DataError: for images that the network does not take, or a label that it has no class for.
        SpecError: if it returns anything else than logits (B, K).
    """
    try:
        with torch.no_grad():
            logits = model(x)
    except (HydrapruneError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a network may refuse images in any way it likes
        first = next(iter(str(error).splitlines()), "")
        raise DataError(
            f"the network does not take images {tuple(x.shape)} of {x.dtype} ({type(error).__name__}: {first}); "
            "give images of the channels and size that it is made for"
        ) from error
    if not isinstance(logits, Tensor):
        raise SpecError(
            f"expected logits ({len(x)}, classes), the network returns a {type(logits).__name__}; wrap it in a module "
            "that returns the logits alone"
        )
    if logits.dim() != 2 or len(logits) != len(x) or not logits.is_floating_point():
        raise SpecError(
            f"expected logits ({len(x)}, classes), the network returns {logits.dtype} {tuple(logits.shape)}; end it in "
            "a linear layer with an output for each class"
        )
    require_labels(y, logits.shape[1])
    return logits


def require_labels(y: Tensor, classes: int) -> None:
    """Raise a DataError unless the class ids `y` (B,) lie in 0..classes - 1."""
    lowest, highest = torch.stack(y.aminmax()).tolist()
    if lowest < 0 or highest >= classes:
        raise DataError(
            f"labels run from {lowest} to {highest}, but the network has {classes} classes; count from 0, or give it "
            "more outputs"
        )


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(part, Tensor) for part in value)
