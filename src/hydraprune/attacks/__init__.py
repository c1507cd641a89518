"""Adversaries: gradient ascent for training, and the attacks that judge a finished network."""

from hydraprune.core.attack import Attack
from hydraprune.core.registry import Registry

ATTACKS = Registry(
    "attack",
    Attack,
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
