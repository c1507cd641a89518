"""What the adversary may do: a norm ball around the image, inside the pixel range."""

from __future__ import annotations

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


def _norms(x: Tensor) -> Tensor:
    """Euclidean norm per sample, shaped to broadcast against `x` (B, ...)."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1).view(-1, *[1] * (x.dim() - 1))


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

    def shrink(self, delta: Tensor) -> Tensor:
        """The change next to `delta` (B, ...) whose `norm` is at most `eps`."""
        if self.norm == "linf":
            return delta.clamp(-self.eps, self.eps)
        return delta * (self.eps / _norms(delta).clamp_min(1e-12)).clamp_max(1.0)

    def project(self, x: Tensor, adversarial: Tensor) -> Tensor:
        """The point of ball and pixel range next to `adversarial`; both (B, ...), gradients cut."""
        # Clipping moves each pixel towards x, so the point stays in the ball.
        return self.shrink(adversarial.detach() - x).add_(x).clamp_(*PIXELS)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The direction of unit length in `norm` along which a linear function with this gradient grows fastest."""
        return gradient.sign() if self.norm == "linf" else gradient / _norms(gradient).clamp_min(1e-12)

    def sample(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """A random point of the ball around each image, uniform in the ball, then clipped to the pixel range."""
        if self.norm == "linf":
            noise = torch.rand(x.shape, generator=rng, device=x.device, dtype=x.dtype) * 2 - 1
            return (x + self.eps * noise).clamp(*PIXELS)
        noise = torch.randn(x.shape, generator=rng, device=x.device, dtype=x.dtype)
        share = torch.rand(len(x), generator=rng, device=x.device, dtype=x.dtype) ** (1 / x[0].numel())
        radius = self.eps * share.view(-1, *[1] * (x.dim() - 1))
        return (x + radius * noise / _norms(noise).clamp_min(1e-12)).clamp(*PIXELS)

    def distance(self, x: Tensor, other: Tensor) -> Tensor:
        """(B,) distances in `norm`."""
        return torch.linalg.vector_norm((other - x).flatten(1), ord=float("inf") if self.norm == "linf" else 2, dim=1)

    def box(self, x: Tensor) -> Box:
        """The smallest axis-parallel box around the admissible images (exact for `linf`)."""
        return Box((x - self.eps).clamp(*PIXELS), (x + self.eps).clamp(*PIXELS))
