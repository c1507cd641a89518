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
    },
)
