"""Accuracy under common corruptions (Hendrycks and Dietterich, arXiv:1903.12261): noise, blur, light, compression.

Corruptions that a library offers as an operation are made here, with the severities of CIFAR-10-C, which are meant for
images of 32 x 32 pixels. The whole benchmark is read from its folder of files.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from hydraprune.core.batches import checked
from hydraprune.core.errors import DataError, EvaluationError, SpecError
from hydraprune.core.network import device_of
from hydraprune.core.objective import Batch
from hydraprune.core.results import Corrupted
from hydraprune.core.seeds import generator
from hydraprune.core.spec import nearest
from hydraprune.core.twin import judged
from hydraprune.data.images import Batches
from hydraprune.evaluation.accuracy import gathered, judge, share

SEVERITIES = (1, 2, 3, 4, 5)

BENCHMARK = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
"""The corruptions over which the benchmark takes its mean. Its four others are for tuning."""


@dataclass(frozen=True)
class Corruption:
    """An operation on float32 images (B, C, H, W) in [0, 1], which may leave that range.

    Attributes:
        apply: takes the images and a level.
        levels: those of severities 1 to 5.
        random: whether it draws random numbers.
        colour: whether it takes images in colour only.
    """

    apply: Callable[[Tensor, Any], Tensor]
    levels: tuple[Any, Any, Any, Any, Any]
    random: bool = False
    colour: bool = False


def _gaussian_noise(x: Tensor, sigma: float) -> Tensor:
    return tv.gaussian_noise(x, sigma=sigma)


def _shot_noise(x: Tensor, photons: float) -> Tensor:
    return torch.poisson(x * photons) / photons


def _gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    return torch.from_numpy(gaussian_filter(x.numpy(), sigma, axes=(2, 3), mode="nearest"))


def _contrast(x: Tensor, factor: float) -> Tensor:
    # Around the mean of each channel: torchvision alone takes the mean of the image in grey.
    return tv.adjust_contrast(x.flatten(0, 1)[:, None], factor).view_as(x)


def _brightness(x: Tensor, shift: float) -> Tensor:
    return _in_hsv(x, 2, 1, shift)


def _saturate(x: Tensor, level: tuple[float, float]) -> Tensor:
    return _in_hsv(x, 1, *level)


def _in_hsv(x: Tensor, part: int, factor: float, shift: float) -> Tensor:
    """`x` with saturation (1) or value (2) times `factor` plus `shift`, kept in [0, 1]."""
    hsv = rgb_to_hsv(x.expand(-1, 3, -1, -1).movedim(1, 3).numpy())
    hsv[..., part] = (hsv[..., part] * factor + shift).clip(0, 1)
    return torch.from_numpy(hsv_to_rgb(hsv)).movedim(3, 1)[:, : x.shape[1]].to(x)


def _pixelate(x: Tensor, factor: float) -> Tensor:
    def coarse(picture: Image.Image) -> Image.Image:
        width, height = picture.size
        small = picture.resize((int(width * factor), int(height * factor)), Image.Resampling.BOX)
        return small.resize((width, height), Image.Resampling.BOX)

    return _pictured(x, coarse)


def _jpeg_compression(x: Tensor, quality: int) -> Tensor:
    def compressed(picture: Image.Image) -> Image.Image:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _pictured(x, compressed)


def _pictured(x: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    return torch.stack([tv.pil_to_tensor(change(tv.to_pil_image(image))) for image in _bytes(x)]) / 255


CORRUPTIONS = {
    "gaussian_noise": Corruption(_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), random=True),
    "shot_noise": Corruption(_shot_noise, (500, 250, 100, 75, 50), random=True),
    "gaussian_blur": Corruption(_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1)),
    "brightness": Corruption(_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": Corruption(_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "saturate": Corruption(_saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)), colour=True),
    "pixelate": Corruption(_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": Corruption(_jpeg_compression, (80, 65, 58, 50, 40)),
}


def offered(channels: int) -> list[str]:
    """The corruptions that change images of so many channels.

    Raises:
        SpecError: unless images are grey or in colour.
    """
    if channels not in (1, 3):
        raise SpecError(f"common corruptions need images of 1 or 3 channels, these have {channels}; leave them out")
    return [name for name, corruption in CORRUPTIONS.items() if channels == 3 or not corruption.colour]


def corrupted(x: Tensor, name: str, severity: int, *, seed: int = 0, first: int = 0) -> Tensor:
    """float32 images (B, C, H, W) in [0, 1] on the CPU, rounded to bytes over 255.

    Args:
        x: images (B, C, H, W) in [0, 1], C being 1 or 3.
        name: one of those `offered`.
        severity: 1 to 5.
        seed: of the noise, which depends on it, on the severity and on an image's number alone.
        first: number of the first image.

    Raises:
        SpecError: for a name, severity or number of channels that there is not.
    """
    names = offered(x.shape[1])
    if name not in names:
        raise SpecError(f"no corruption {name!r} of images of {x.shape[1]} channels; {nearest(name, names)}")
    if severity not in SEVERITIES:
        raise SpecError(f"severity {severity} of {name!r}: choose 1 to 5")
    corruption, x = CORRUPTIONS[name], x.float().cpu()
    level = corruption.levels[severity - 1]
    if not corruption.random:
        return _bytes(corruption.apply(x, level)).float() / 255
    images = []
    with torch.random.fork_rng(devices=[]):
        for number, image in enumerate(x.split(1), first):
            torch.set_rng_state(generator(seed, severity, number).get_state())
            images.append(corruption.apply(image, level))
    return _bytes(torch.cat(images)).float() / 255


def _bytes(x: Tensor) -> Tensor:
    return (x * 255).round().clamp(0, 255).to(torch.uint8)


class CorruptedBatch(NamedTuple):
    """Images with one corruption at one severity."""

    name: str
    severity: int
    batch: Batch


@dataclass(frozen=True)
class Made:
    """Corruptions made of images as they are read; `len()` is the number of parts.

    Attributes:
        batches: the images, in fixed order.
        names: the corruptions.
        seed: of the noise.
    """

    batches: Batches
    names: list[str]
    seed: int

    @property
    def samples(self) -> int:
        """Images of each severity."""
        return self.batches.total

    def __len__(self) -> int:
        return len(self.batches) * len(self.names) * len(SEVERITIES)

    def __iter__(self) -> Iterator[CorruptedBatch]:
        first = 0
        for x, y in self.batches.epoch(0):
            for name in self.names:
                for severity in SEVERITIES:
                    images = corrupted(x, name, severity, seed=self.seed, first=first)
                    yield CorruptedBatch(name, severity, Batch(images, y))
            first += len(y)


@dataclass(frozen=True)
class Files:
    """The first `samples` images of each severity in the files of CIFAR-10-C; `len()` is the number of parts.

    Attributes:
        images: corruption -> uint8 (5 N, H, W, C), severity 1 first.
        labels: int64 (5 N,).
        samples: at most N.
        batch_size: images of a part.
    """

    images: dict[str, np.ndarray]
    labels: Tensor
    samples: int
    batch_size: int

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size) * len(self.images) * len(SEVERITIES)

    def __iter__(self) -> Iterator[CorruptedBatch]:
        count = len(self.labels) // len(SEVERITIES)
        for name, images in self.images.items():
            for severity in SEVERITIES:
                begin = (severity - 1) * count
                end = begin + self.samples
                for first in range(begin, end, self.batch_size):
                    at = slice(first, min(first + self.batch_size, end))
                    x = torch.from_numpy(np.array(images[at])).movedim(3, 1).float() / 255
                    yield CorruptedBatch(name, severity, Batch(x, self.labels[at]))


def read_files(folder: Path, shape: tuple[int, int, int], samples: int | None, batch_size: int) -> Files:
    """The benchmark's corruptions in a folder such as CIFAR-10-C: NAME.npy for each of its 15, and labels.npy.

    Args:
        folder: the folder.
        shape: (C, H, W) of the images that the network takes.
        samples: number of first images of each severity; None takes all.
        batch_size: images of a part.

    Raises:
        DataError: if a file is missing or damaged, or holds something else. Nothing is unpickled.
    """
    labels = _array(folder / "labels.npy")
    fits = labels.dtype.kind in "iu" and labels.ndim == 1 and len(labels) and len(labels) % len(SEVERITIES) == 0
    if not fits:
        raise DataError(f"{folder / 'labels.npy'} is {labels.dtype} {labels.shape}; expected 5 N integers, N images")
    channels, height, width = shape
    wanted = (len(labels), height, width, channels)
    images = {name: _array(folder / f"{name}.npy") for name in BENCHMARK}
    for name, values in images.items():
        if values.dtype != np.uint8 or values.shape != wanted:
            found = f"{folder / name}.npy is {values.dtype} {values.shape}"
            raise DataError(f"{found}; expected uint8 {wanted}, as labels.npy and the data set have it")
    count = len(labels) // len(SEVERITIES)
    return Files(images, torch.from_numpy(labels.astype(np.int64)), min(samples or count, count), batch_size)


def _array(path: Path) -> np.ndarray:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing; give a folder like CIFAR-10-C (https://zenodo.org/records/2535967), unpacked"
        ) from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is no array ({error}); download it again") from None
    if not isinstance(found, np.ndarray):
        raise DataError(f"{path} is an archive of arrays; expected one array, as np.save writes it")
    return found


def corruption_accuracy(
    model: nn.Module, parts: Iterable[CorruptedBatch], *, progress: Callable[[str], None] | None = None
) -> Corrupted:
    """Accuracy for each corruption and severity, and its mean, in float32 on a plain copy of the network.

    Args:
        model: returns logits (B, K); may be parametrized, in any mode, on any device.
        parts: all images of every corruption and severity.
        progress: called with the corruption after each part.

    Raises:
        DataError: for labels that the network has no class for.
        EvaluationError: without images, or for logits that are not finite.
    """
    device = device_of(model)
    verdicts: dict[str, list[list[Tensor]]] = {}
    with torch.autocast(device.type, enabled=False):
        net = judged(model)
        for name, severity, batch in parts:
            x, y = checked(batch, device)
            verdicts.setdefault(name, [[] for _ in SEVERITIES])[severity - 1].append(judge(net, x, y))
            if progress:
                progress(name)
    if not verdicts:
        raise EvaluationError("no images to corrupt; give at least one")
    right = {name: [gathered(found) for found in each] for name, each in verdicts.items()}
    accuracy = {name: [share(verdict) for verdict in each] for name, each in right.items()}
    means = [sum(shares) / len(shares) for shares in accuracy.values()]
    samples = len(next(iter(right.values()))[0])
    return Corrupted(samples=samples, accuracy=accuracy, mean_accuracy=sum(means) / len(means))
