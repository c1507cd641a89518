"""Training objectives: each the same call over weights and over scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hydraprune.core.lazy import lazy
from hydraprune.core.registry import Registry

if TYPE_CHECKING:
    from hydraprune.core.objective import Objective as Objective

OBJECTIVES: Registry[Objective] = Registry(
    "objective",
    "hydraprune.core.objective:Objective",
    {
        "natural": "hydraprune.objectives.natural:Natural",
        "pgd": "hydraprune.objectives.pgd:PGD",
        "trades": "hydraprune.objectives.trades:TRADES",
        "mart": "hydraprune.objectives.mart:MART",
        "fast": "hydraprune.objectives.fast:Fast",
        "free": "hydraprune.objectives.free:Free",
        "gaussian": "hydraprune.objectives.gaussian:Gaussian",
        "stability": "hydraprune.objectives.stability:Stability",
        "smoothadv": "hydraprune.objectives.smoothadv:SmoothAdv",
        "distill": "hydraprune.objectives.distill:Distill",
        "awp": "hydraprune.objectives.awp:AWP",
        "pwoa": "hydraprune.objectives.pwoa:PwoA",
        "ibp": "hydraprune.objectives.ibp:IBP",
        "crown-ibp": "hydraprune.objectives.crown_ibp:CrownIBP",
        "mixtrain": "hydraprune.objectives.mixtrain:MixTrain",
        "sabr": "hydraprune.objectives.sabr:SABR",
        "mtl-ibp": "hydraprune.objectives.mtl_ibp:MTLIBP",
    },
)

__getattr__, __dir__ = lazy(__name__, OBJECTIVES.classes)
