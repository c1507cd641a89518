"""Image files to bytes of red, green and blue."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from hydraprune.core.errors import DataError


def rgb(file: str | Path | io.BytesIO, name: str) -> Image.Image:
    """The decoded image, in colour.

    Raises:
        DataError: naming the image `name`, if it is damaged or no image.
    """
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{name} cannot be decoded as an image ({error}); restore it or take it out") from None


def decoded(encoded: Sequence[tuple[str, bytes]]) -> Tensor:
    """uint8 (N, 3, H, W) from N pairs of name and file content, with a progress bar where there is a terminal.

    Raises:
        DataError: if an image is damaged, or of another size than the first.
    """
    console = Console(stderr=True)
    bar = track(encoded, "decoding images", console=console, transient=True, disable=not console.is_terminal)
    pixels = np.empty((0, 3, 1, 1), np.uint8)
    for index, (name, content) in enumerate(bar):
        image = np.asarray(rgb(io.BytesIO(content), name)).transpose(2, 0, 1)
        if index == 0:
            pixels = np.empty((len(encoded), *image.shape), np.uint8)
        if image.shape != pixels.shape[1:]:
            sizes = [f"{width}x{height}" for _, height, width in (image.shape, pixels.shape[1:])]
            raise DataError(f"{name} is {sizes[0]} pixels, {encoded[0][0]} {sizes[1]}; resize all images to one size")
        pixels[index] = image
    return torch.from_numpy(pixels)
