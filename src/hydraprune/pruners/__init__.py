"""Pruning methods: each says how important every weight is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hydraprune.core.lazy import lazy
from hydraprune.core.registry import Registry

if TYPE_CHECKING:
    from hydraprune.pruners.base import Learned as Learned
    from hydraprune.pruners.base import Moving as Moving
    from hydraprune.pruners.base import OneShot as OneShot
    from hydraprune.pruners.base import Pruner as Pruner
    from hydraprune.pruners.probe import Probe as Probe
    from hydraprune.pruners.pruning import Pruning as Pruning
    from hydraprune.pruners.pruning import prune as prune

PRUNERS: Registry[Pruner] = Registry(
    "pruner",
    "hydraprune.pruners.base:Pruner",
    {
        "hydra": "hydraprune.pruners.hydra:Hydra",
        "magnitude": "hydraprune.pruners.magnitude:Magnitude",
        "random": "hydraprune.pruners.random:Random",
        "snip": "hydraprune.pruners.snip:SNIP",
        "grasp": "hydraprune.pruners.grasp:GraSP",
        "synflow": "hydraprune.pruners.synflow:SynFlow",
        "taylor": "hydraprune.pruners.taylor:Taylor",
        "lamp": "hydraprune.pruners.lamp:LAMPScores",
        "mad": "hydraprune.pruners.mad:MAD",
        "harp": "hydraprune.pruners.harp:HARP",
        "edge-popup": "hydraprune.pruners.edge_popup:EdgePopup",
        "twin-rep": "hydraprune.pruners.twin_rep:TwinRep",
        "rsr": "hydraprune.pruners.rsr:RSR",
        "gradual": "hydraprune.pruners.gradual:Gradual",
        "iterative": "hydraprune.pruners.iterative:Iterative",
        "lottery-ticket": "hydraprune.pruners.lottery_ticket:LotteryTicket",
        "early-bird": "hydraprune.pruners.early_bird:EarlyBird",
        "admm": "hydraprune.pruners.admm:ADMM",
        "set": "hydraprune.pruners.set:SET",
        "rigl": "hydraprune.pruners.rigl:RigL",
        "flyingbird": "hydraprune.pruners.flyingbird:FlyingBird",
        "flyingbird+": "hydraprune.pruners.flyingbird:FlyingBirdPlus",
        "deep-r": "hydraprune.pruners.deep_r:DeepR",
        "dns": "hydraprune.pruners.dns:DNS",
        "ste-magnitude": "hydraprune.pruners.ste_magnitude:STEMagnitude",
        "scratch": "hydraprune.pruners.scratch:Scratch",
    },
)

__getattr__, __dir__ = lazy(__name__, PRUNERS.classes)
