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
    },
)

BUDGETS: Registry[Budget] = Registry(
    "budget",
    Budget,
    {
        "uniform": "hydraprune.masks.budgets:Uniform",
        "global": "hydraprune.masks.budgets:Global",
        "erk": "hydraprune.masks.budgets:ERK",
    },
)
