"""Masks on ordinary modules: selection, parametrizations, structures and budgets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hydraprune.core.lazy import lazy
from hydraprune.core.registry import Registry

if TYPE_CHECKING:
    from hydraprune.masks.budgets import Budget
    from hydraprune.masks.structures import Structure

STRUCTURES: Registry[Structure] = Registry(
    "structure",
    "hydraprune.masks.structures:Structure",
    {
        "weight": "hydraprune.masks.structures:Weight",
        "filter": "hydraprune.masks.structures:Filter",
        "channel": "hydraprune.masks.structures:Channel",
        "coupled": "hydraprune.masks.structures:Coupled",
        "block": "hydraprune.masks.structures:Block",
        "n:m": "hydraprune.masks.structures:NOfM",
    },
)

BUDGETS: Registry[Budget] = Registry(
    "budget",
    "hydraprune.masks.budgets:Budget",
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

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__)
