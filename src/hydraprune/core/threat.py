"""What the adversary may do: a norm ball around the image, inside the pixel range."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from hydraprune.core.spec import Number, Spec

PIXELS = (0.0, 1.0)
"""Every image lies in this range; normalisation is a layer of the network."""


class Box(NamedTuple):
    """Elementwise lower and upper ends, each of the images' shape."""

    lower: Tensor
    upper: Tensor


def lengths(delta: Tensor, order: float = 2) -> Tensor:
    """(B,) lengths of `delta` (B, ...) in the p-norm of this order."""
    return torch.linalg.vector_norm(delta.flatten(1), ord=order, dim=1)


def per_image(value: Tensor, x: Tensor) -> Tensor:
    """`value` (B,), shaped to broadcast against `x` (B, ...)."""
    return value.view(-1, *[1] * (x.dim() - 1))


def _norms(x: Tensor) -> Tensor:
    """Euclidean lengths that may be divided by, shaped to broadcast against `x` (B, ...)."""
    return per_image(lengths(x).clamp_min(1e-12), x)


class ThreatModel(Spec):
    """All images within `eps` of `x` in `norm`, in pixels of [0, 1].

    Args:
        norm: `linf` (largest change of a pixel) or `l2` (Euclidean length of the change).
        eps: radius, at least 0; at most 1 for `linf`. May be written `8/255`.
    """

    norm: Literal["linf", "l2"] = "linf"
    eps: Number = Field(ge=0)

    @model_validator(mode="after")
    def _pixel_units(self) -> ThreatModel:
        if self.norm == "linf" and self.eps > 1:
            raise ValueError(f"eps {self.eps:g} is above 1; pixels lie in [0, 1], so write {self.eps:g}/255")
        return self

    @property
    def label(self) -> str:
        """Norm and radius as a name for folders: `linf-0.2`."""
        return f"{self.norm}-{self.eps:g}"

    @property
    def order(self) -> float:
        """Of the p-norm."""
        return math.inf if self.norm == "linf" else 2

    def scaled(self, factor: float) -> ThreatModel:
        """The same ball, its radius `factor` times as large; nothing keeps a linf radius below 1 here."""
        return self.model_copy(update={"eps": factor * self.eps})

    def shrink(self, delta: Tensor, radius: Tensor | None = None) -> Tensor:
        """The change next to `delta` (B, ...) whose `norm` is at most `eps`, or its image's `radius` (B,)."""
        reach = self.eps if radius is None else per_image(radius, delta)
        if self.norm == "linf":
            return delta.clamp(-reach, reach)  # type: ignore[operator, arg-type]
        return delta * (reach / _norms(delta)).clamp_max(1.0)

    def project(self, x: Tensor, adversarial: Tensor) -> Tensor:
        """The point of ball and pixel range next to `adversarial`; both (B, ...), gradients cut."""
        # Clipping moves each pixel towards x, so the point stays in the ball.
        return self.shrink(adversarial.detach() - x).add_(x).clamp_(*PIXELS)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The direction of unit length in `norm` along which a linear function with this gradient grows fastest."""
        return gradient.sign() if self.norm == "linf" else gradient / _norms(gradient)

    def sample(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """A random point of the ball around each image, uniform in the ball, then clipped to the pixel range."""
        if self.norm == "linf":
            noise = torch.rand(x.shape, generator=rng, device=x.device, dtype=x.dtype) * 2 - 1
            return (x + self.eps * noise).clamp(*PIXELS)
        noise = torch.randn(x.shape, generator=rng, device=x.device, dtype=x.dtype)
        share = torch.rand(len(x), generator=rng, device=x.device, dtype=x.dtype) ** (1 / x[0].numel())
        return (x + per_image(self.eps * share, x) * noise / _norms(noise)).clamp(*PIXELS)

    def distance(self, x: Tensor, other: Tensor) -> Tensor:
        """(B,) distances in `norm`."""
        return lengths(other - x, self.order)

    def box(self, x: Tensor) -> Box:
        """The smallest axis-parallel box around the admissible images (exact for `linf`)."""
        return Box((x - self.eps).clamp(*PIXELS), (x + self.eps).clamp(*PIXELS))
