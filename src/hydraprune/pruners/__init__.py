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
        "lamp": "hydraprune.pruners.lamp:LAMP",
    },
)
