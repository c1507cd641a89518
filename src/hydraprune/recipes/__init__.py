"""Recipes: experiments as data, and what runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hydraprune.core.registry import Registry

if TYPE_CHECKING:
    from hydraprune.recipes.stages import Stage

STAGES: Registry[Stage] = Registry(
    "stage",
    "hydraprune.recipes.stages:Stage",
    {
        "fit": "hydraprune.recipes.training:Fit",
        "evaluate": "hydraprune.recipes.evaluate:Evaluate",
        "certify": "hydraprune.recipes.certify:Certify",
    },
)
