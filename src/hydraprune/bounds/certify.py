"""Bounds for verification: of a finished network, against a threat model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hydraprune.bounds import BOUNDS
from hydraprune.bounds.base import Bounds
from hydraprune.core.batches import logits_of
from hydraprune.core.errors import SpecError
from hydraprune.core.network import device_of
from hydraprune.core.precision import exact
from hydraprune.core.spec import said
from hydraprune.core.threat import PIXELS, Box, ThreatModel

Method = str | dict[str, Any] | Bounds
"""A bound, its name (`ibp`, `crown`, `crown-ibp`, `symbolic`, `best`), or its name and settings."""


def logit_bounds(model: nn.Module, x: Tensor, threat: ThreatModel | Mapping[str, Any], method: Method = "crown") -> Box:
    """Ends of the logits, each (B, K), over all admissible images near `x` (B, C, H, W), with gradient.

    They are not rounded outward: in float32 they may be off by some 1e-5 of the largest one, in float64 by some 1e-13.

    Args:
        model: a network in evaluation mode, traceable, that returns logits (B, K).
        threat: of norm linf, or its settings; the box is clipped to the pixel range [0, 1].

    Raises:
        SpecError: for a network in training mode or that has no bounds, images outside of [0, 1] or of another type
            than the network's, half precision, or another norm.
        DataError: for images that the network does not take.
    """
    bound, box = _checked(model, x, threat, method)
    with exact(), torch.autocast(x.device.type, enabled=False):
        return bound.logits(model, box)


def margin_bounds(
    model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel | Mapping[str, Any], method: Method = "crown"
) -> Tensor:
    """(B, K) lower bounds of f_y - f_j over all admissible images near `x`, 0 at j = y, with gradient.

    An image is verified where all the others are above zero, strictly: it is then classified as `y`, whatever the
    adversary does. For arguments, precision and errors see `logit_bounds`.

    Args:
        y: class ids (B,), int64.
    """
    bound, box = _checked(model, x, threat, method)
    if not isinstance(y, Tensor):
        raise SpecError(f"labels are {said(y)}; give a tensor (B,) of class ids")
    if y.shape != x.shape[:1] or y.dtype != torch.int64 or (len(y) and y.min() < 0):
        raise SpecError(f"labels are {y.dtype} of shape {tuple(y.shape)}; give one class id (int64, from 0) per image")
    with exact(), torch.autocast(x.device.type, enabled=False):
        analysis = bound.analyse(model, box)
        if len(y) and y.max() >= analysis.classes:
            raise SpecError(f"label {int(y.max())} is none of the {analysis.classes} classes; ids count from 0")
        return analysis.margins(y)


def require_boxes(threat: ThreatModel) -> None:
    """Raise a SpecError unless the admissible images form a box."""
    if threat.norm != "linf":
        raise SpecError(f"bounds hold for boxes, not for the norm {threat.norm!r}; use `norm: linf`")


def _checked(
    model: nn.Module, x: Tensor, threat: ThreatModel | Mapping[str, Any], method: Method
) -> tuple[Bounds, Box]:
    device_of(model)
    if not isinstance(x, Tensor):
        raise SpecError(f"images are {said(x)}; give a tensor (B, C, H, W)")
    threat = ThreatModel.make(threat, "threat")
    require_boxes(threat)
    # A mask has a mode, too, which changes nothing.
    if any(module.training and ".parametrizations." not in f".{path}." for path, module in model.named_modules()):
        raise SpecError("a network in training mode has no certificate, as its function changes; call model.eval()")
    kinds = {x.dtype, *(p.dtype for p in model.parameters() if p.is_floating_point())}
    if kinds not in ({torch.float32}, {torch.float64}):
        raise SpecError(
            f"network and images are in {', '.join(sorted(map(str, kinds)))}; bounds need both in float32, or both in "
            "float64, as in model.float() and x.float()"
        )
    if not ((x >= PIXELS[0]) & (x <= PIXELS[1])).all():
        raise SpecError("images are floats in [0, 1]; divide bytes by 255, and let the network normalise")
    bound = BOUNDS.make(method, "method")
    logits_of(model, x, x.new_zeros(len(x), dtype=torch.int64))
    return bound, threat.box(x)
