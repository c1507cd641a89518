"""Masks on ordinary modules: selection, parametrizations, structures and budgets."""

from hydraprune.core.registry import Registry
from hydraprune.masks.budgets import Budget
from hydraprune.masks.structures import Structure

STRUCTURES: Registry[Structure] = Registry(
    "structure",
    Structure,
    {
        "weight": "hydraprune.masks.structures:Weight",
        "filter": "hydraprune.masks.structures:Filter",
        "channel": "hydraprune.masks.structures:Channel",
        "block": "hydraprune.masks.structures:Block",
        "n:m": "hydraprune.masks.structures:NOfM",
    },
)

BUDGETS: Registry[Budget] = Registry(
    "budget",
    Budget,
    {
        "uniform": "hydraprune.masks.budgets:Uniform",
        "global": "hydraprune.masks.budgets:Global",
        "lamp": "hydraprune.masks.budgets:LAMP",
        "erk": "hydraprune.masks.budgets:ERK",
        "igq": "hydraprune.masks.budgets:IGQ",
        "parameters": "hydraprune.masks.budgets:Parameters",
        "flops": "hydraprune.masks.budgets:FLOPs",
        "table": "hydraprune.masks.budgets:Table",
    },
)
