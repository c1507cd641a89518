"""Bounds for verification: of a finished network, against a threat model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hydraprune.bounds.base import Bounds
from hydraprune.bounds.registry import BOUNDS
from hydraprune.core.errors import SpecError
from hydraprune.core.precision import exact
from hydraprune.core.threat import PIXELS, Box, ThreatModel

Method = str | dict[str, Any] | Bounds
"""A bound, its name (`ibp`, `crown`, `crown-ibp`, `symbolic`, `best`), or its name and settings."""


def logit_bounds(model: nn.Module, x: Tensor, threat: ThreatModel, method: Method = "crown") -> Box:
    """Ends of the logits, each (B, K), over all admissible images near `x` (B, C, H, W), with gradient.

    They are not rounded outward: in float32 they may be off by some 1e-5 of the largest one, in float64 by some 1e-13.

    Args:
        model: a network in evaluation mode, traceable, that returns logits (B, K).
        threat: of norm linf; the box is clipped to the pixel range [0, 1].

    Raises:
        SpecError: for a network in training mode or that has no bounds, images outside of [0, 1], or another norm.
    """
    bound, box = _checked(model, x, threat, method)
    with exact(), torch.autocast(x.device.type, enabled=False):
        return bound.logits(model, box)


def margin_bounds(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, method: Method = "crown") -> Tensor:
    """(B, K) lower bounds of f_y - f_j over all admissible images near `x`, 0 at j = y, with gradient.

    An image is verified where all the others are above zero, strictly: it is then classified as `y`, whatever the
    adversary does. For arguments, precision and errors see `logit_bounds`.

    Args:
        y: class ids (B,), int64.
    """
    bound, box = _checked(model, x, threat, method)
    if y.shape != x.shape[:1] or y.dtype != torch.int64 or (len(y) and y.min() < 0):
        raise SpecError(f"labels are {y.dtype} of shape {tuple(y.shape)}; give one class id (int64, from 0) per image")
    with exact(), torch.autocast(x.device.type, enabled=False):
        analysis = bound.analyse(model, box)
        if len(y) and y.max() >= analysis.classes:
            raise SpecError(f"label {int(y.max())} is none of the {analysis.classes} classes; ids count from 0")
        return analysis.margins(y)


def check_norm(threat: ThreatModel) -> None:
    """Raise a SpecError unless the admissible images form a box."""
    if threat.norm != "linf":
        raise SpecError(f"bounds hold for boxes, not for the norm {threat.norm!r}; use `norm: linf`")


def _checked(model: nn.Module, x: Tensor, threat: ThreatModel, method: Method) -> tuple[Bounds, Box]:
    check_norm(threat)
    # A mask has a mode, too, which changes nothing.
    if any(module.training and ".parametrizations." not in f".{path}." for path, module in model.named_modules()):
        raise SpecError("a network in training mode has no certificate, as its function changes; call model.eval()")
    if not x.is_floating_point() or not ((x >= PIXELS[0]) & (x <= PIXELS[1])).all():
        raise SpecError("images are floats in [0, 1]; divide bytes by 255, and let the network normalise")
    return BOUNDS.make(method, "method"), threat.box(x)
