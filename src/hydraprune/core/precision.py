"""Float32 that is float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_PRODUCTS = (
    torch.backends.cuda.matmul,
    torch.backends.cudnn.conv,  # type: ignore[attr-defined]
    torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]
    torch.backends.mkldnn.conv,  # type: ignore[attr-defined]
)


@contextmanager
def exact() -> Iterator[None]:
    """Inside, products of float32 keep all their bits: no TF32, which keeps ten, nor bf16. Autocast is not touched."""
    before = [product.fp32_precision for product in _PRODUCTS]
    try:
        for product in _PRODUCTS:
            product.fp32_precision = "ieee"
        yield
    finally:
        for product, precision in zip(_PRODUCTS, before, strict=True):
            product.fp32_precision = precision
