"""Several attacks as one: each runs on what the last left standing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hydraprune.attacks import ATTACKS
from hydraprune.attacks.autoattack import AutoAttack
from hydraprune.attacks.pgd import PGD
from hydraprune.core.attack import Attack
from hydraprune.core.threat import ThreatModel


class Ensemble(Attack):
    """The union of its members at the price of the images that are left to each; no member has an accuracy of its own.

    Args:
        attacks: its members, cheap ones first.

    Example: `{kind: ensemble, attacks: [pgd, autoattack]}`.
    """

    kind: Literal["ensemble"] = "ensemble"
    attacks: list[Annotated[Attack, ATTACKS]] = Field([PGD(), AutoAttack()], min_length=1)

    @property
    def name(self) -> str:
        return "ensemble-" + "+".join(attack.name for attack in self.attacks)

    def networks(self) -> frozenset[str]:
        return frozenset().union(*(attack.networks() for attack in self.attacks))

    def using(self, networks: Mapping[str, nn.Module]) -> Ensemble:
        return self.model_copy(update={"attacks": [attack.using(networks) for attack in self.attacks]})

    def search(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: torch.Generator) -> Tensor:
        worst = x.clone()
        standing = torch.arange(len(x), device=x.device)
        for attack in self.attacks:
            here, labels = x[standing], y[standing]
            worst[standing] = found = threat.project(here, attack.search(model, here.clone(), labels, threat, rng))
            with torch.no_grad():
                standing = standing[model(found).argmax(1) == labels]
            if len(standing) == 0:
                break
        return worst
