"""Minimum-norm attacks of the library foolbox (arXiv:1707.04131)."""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from hydraprune.attacks.seeded import seeded
from hydraprune.core.threat import PIXELS


def closest(attack: str, model: nn.Module, x: Tensor, y: Tensor, rng: torch.Generator, **settings: Any) -> Tensor:
    """What foolbox's attack class called `attack` finds for images `x` (B, C, H, W) and labels `y` (B,)."""
    library = _foolbox()
    frozen = library.PyTorchModel(model, bounds=PIXELS, device=x.device)
    with seeded(rng):
        return getattr(library.attacks, attack)(**settings).run(frozen, x, library.Misclassification(y))


def _foolbox() -> Any:
    # It imports SciPy by a deprecated path, and GitPython, which complains where there is no git.
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import foolbox
    return foolbox
