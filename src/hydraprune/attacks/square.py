"""Square Attack: random search that never asks for a gradient (arXiv:1912.00049), by its authors' package."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hydraprune.attacks.autoattack import run
from hydraprune.core.attack import Attack
from hydraprune.core.threat import ThreatModel


class Square(Attack):
    """A black-box attack. Where it beats the gradient attacks, their gradients are masked (arXiv:1802.00420).

    Args:
        queries: forward passes per image.
        batch_size: images per forward pass.

    Example: `{kind: square}`.
    """

    library = "pyautoattack"

    kind: Literal["square"] = "square"
    queries: int = Field(5000, ge=1)
    batch_size: int = Field(500, ge=1)

    @property
    def name(self) -> str:
        return f"square-{self.queries}"

    def search(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: torch.Generator) -> Tensor:
        return run(model, x, y, threat, rng, self.batch_size, self._adjust, version="custom", attacks=["square"])

    def _adjust(self, library: Any) -> None:
        library.square.n_queries = self.queries
