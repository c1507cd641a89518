"""The contract of an attack: search for a bad image; the caller projects it and judges success."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.util import find_spec
from typing import ClassVar, Self

import torch
from pydantic import PrivateAttr
from torch import Tensor, nn

from hydraprune.core.errors import SpecError
from hydraprune.core.extras import extra
from hydraprune.core.spec import Spec
from hydraprune.core.threat import ThreatModel


class Attack(Spec, ABC):
    """An adversary for evaluation. It sees a plain network in evaluation mode that returns logits (B, K)."""

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    """The balls that it can search."""
    library: ClassVar[str | None] = None
    """The package that it calls, which the extra `attacks` installs."""

    kind: str

    _others: Mapping[str, nn.Module] = PrivateAttr(default_factory=dict)

    def networks(self) -> frozenset[str]:
        """Names of the other networks that it works with."""
        return frozenset()

    def using(self, networks: Mapping[str, nn.Module]) -> Self:
        """The same attack with these other networks: plain, frozen, in evaluation mode, on the device of the images.

        Raises:
            SpecError: if one that it needs is missing.
        """
        bound = self.model_copy()
        bound._others = {name: networks[name] for name in self.networks() if name in networks}
        for name in self.networks():
            bound.network(name)
        return bound

    def network(self, name: str) -> nn.Module:
        """The other network of that name; SpecError without it."""
        if name not in self._others:
            raise SpecError(f"attack {self.name!r} needs the network {name!r}; give `networks={{{name!r}: model}}`")
        return self._others[name]

    @property
    @abstractmethod
    def name(self) -> str:
        """What tables call it, its strength included: `pgd-50x10`."""

    def require(self) -> None:
        super().require()
        if self.library is not None and find_spec(self.library) is None:
            with extra("attacks", f"attack {self.kind!r}"):
                raise ModuleNotFoundError(name=self.library)

    @abstractmethod
    def search(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: torch.Generator) -> Tensor:
        """The worst images found, (B, C, H, W), for `x` in [0, 1] and labels `y` (B,).

        The caller projects them into ball and pixel range and counts as robust what is still classified as `y`; an
        attack is never trusted to judge itself.
        """


class MinimumNorm(Attack, ABC):
    """An attack that looks for the closest misclassified image, whatever the radius: one run gives every radius."""

    @abstractmethod
    def closest(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: torch.Generator) -> Tensor:
        """The misclassified images closest to `x` in the threat's norm, (B, C, H, W); its eps is not looked at.

        The caller judges them and measures the distance; where nothing was found, any image may be returned.
        """

    def search(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: torch.Generator) -> Tensor:
        # A thousandth beyond the border, so that rounding does not lead back over it.
        return threat.project(x, x.lerp(self.closest(model, x, y, threat, rng), 1.001))
