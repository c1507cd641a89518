"""Adversaries: gradient ascent for training, and the attacks that judge a finished network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hydraprune.core.lazy import lazy
from hydraprune.core.registry import Registry

if TYPE_CHECKING:
    from hydraprune.core.attack import Attack as Attack

ATTACKS: Registry[Attack] = Registry(
    "attack",
    "hydraprune.core.attack:Attack",
    {
        "fgsm": "hydraprune.attacks.fgsm:FGSM",
        "pgd": "hydraprune.attacks.pgd:PGD",
        "autoattack": "hydraprune.attacks.autoattack:AutoAttack",
        "apgd": "hydraprune.attacks.apgd:APGD",
        "square": "hydraprune.attacks.square:Square",
        "fmn": "hydraprune.attacks.fmn:FMN",
        "ddn": "hydraprune.attacks.ddn:DDN",
        "cw": "hydraprune.attacks.cw:CarliniWagner",
        "transfer": "hydraprune.attacks.transfer:Transfer",
        "ensemble": "hydraprune.attacks.ensemble:Ensemble",
    },
)

__getattr__, __dir__ = lazy(__name__, ATTACKS.classes)
