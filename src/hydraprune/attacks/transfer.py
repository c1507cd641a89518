"""Images found on another network (arXiv:1605.07277): a dense one against its pruned twin, or the other way round."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from hydraprune.attacks.gradient import cross_entropy_of, pgd
from hydraprune.core.attack import Attack
from hydraprune.core.threat import ThreatModel
from hydraprune.core.twin import judged


def transferred(origin: str, steps: int = 50) -> str:
    """What tables call the attack with images found on `origin`."""
    return f"transfer-{steps}-from-{origin}"


def described(origin: str, digest: str) -> dict[str, Any]:
    """The settings of the attack from the network `origin`, whose weights have that digest."""
    return Transfer(surrogate=nn.Identity(), origin=origin, digest=digest).plain()


class Transfer(Attack):
    """All steps of PGD on a surrogate, without stopping where it is fooled: deep in the wrong class, images transfer.

    It holds a network, so it is made in Python or by `transfer_from`, and not by name in a recipe.

    Args:
        surrogate: another network of the same classes; may be parametrized, in any mode.
        origin: what tables call the surrogate.
        digest: tells its weights from others, where verdicts are kept.
        steps: gradient steps.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    kind: Literal["transfer"] = "transfer"
    surrogate: nn.Module = Field(exclude=True)
    origin: str
    digest: str = ""
    steps: int = Field(50, ge=1)

    @property
    def name(self) -> str:
        return transferred(self.origin, self.steps)

    def search(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: torch.Generator) -> Tensor:
        surrogate = judged(self.surrogate).to(x.device)
        return pgd(surrogate, x, threat, cross_entropy_of(y), steps=self.steps, start="uniform", rng=rng)
