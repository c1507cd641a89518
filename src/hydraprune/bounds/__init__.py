"""Certified bounds: what a network can do at worst on all images of a box."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hydraprune.core.lazy import lazy
from hydraprune.core.registry import Registry

if TYPE_CHECKING:
    from hydraprune.bounds.base import Bounds
    from hydraprune.bounds.certify import logit_bounds, margin_bounds
    from hydraprune.bounds.statistics import batch_statistics

BOUNDS: Registry[Bounds] = Registry(
    "bound",
    "hydraprune.bounds.base:Bounds",
    {
        "ibp": "hydraprune.bounds.methods:IBP",
        "crown": "hydraprune.bounds.methods:Crown",
        "crown-ibp": "hydraprune.bounds.methods:CrownIBP",
        "symbolic": "hydraprune.bounds.methods:Symbolic",
        "best": "hydraprune.bounds.best:Best",
    },
)

__all__ = ["BOUNDS", "Bounds", "batch_statistics", "logit_bounds", "margin_bounds"]

__getattr__, __dir__ = lazy(__name__, BOUNDS.classes)
