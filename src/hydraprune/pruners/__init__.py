"""Pruning methods: each says how important every weight is."""

from hydraprune.core.registry import Registry
from hydraprune.pruners.base import Pruner

PRUNERS: Registry[Pruner] = Registry(
    "pruner",
    Pruner,
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
