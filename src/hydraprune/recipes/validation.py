"""What a stage measures of its network while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn

from hydraprune.attacks.pgd import PGD
from hydraprune.core.hook import Hook, alike
from hydraprune.core.spec import Spec
from hydraprune.data import Batches, Images
from hydraprune.evaluation import evaluate
from hydraprune.train.machine import Machine

if TYPE_CHECKING:
    from hydraprune.recipes.schema import Recipe
    from hydraprune.recipes.training import Fit


class Validation(Spec):
    """What is measured on the held-out validation images after each epoch.

    Args:
        samples: how many of them; 0 measures nothing.
        steps: PGD steps; 0 measures clean accuracy only.
        every: epochs between measurements; the last epoch is always measured.
    """

    samples: int = Field(default=500, ge=0)
    steps: int = Field(default=10, ge=0)
    every: int = Field(default=1, ge=1)


class Validate(Hook):
    """Measures held-out images after an epoch, and keeps the best network if the stage asks for it.

    Attributes:
        best: its tensors; empty if none is kept. It is part of the state of the stage.
    """

    def __init__(self, recipe: Recipe, stage: Fit, images: Images, fabric: Machine, model: nn.Module) -> None:
        self._recipe, self._stage, self._images, self._fabric, self._model = recipe, stage, images, fabric, model
        self._value = -1.0
        self.best: dict[str, Tensor] = {}

    def on_epoch(self, epoch: int, model: nn.Module, metrics: dict[str, float]) -> None:
        settings, images = self._stage.validation, self._images
        due = epoch % settings.every == 0 or epoch == self._stage.epochs
        if not due or not settings.samples or not len(images):
            return
        threat = self._recipe.threat
        attacks = [PGD(steps=settings.steps, restarts=1)] if threat is not None and settings.steps else []
        batches: Batches = images.take(settings.samples).batches(500, seed=0, device=self._fabric.device)
        result = evaluate(model, batches.epoch(0), threat=threat, attacks=attacks, seed=self._recipe.seed)
        metrics["validation_accuracy"] = value = result.clean_accuracy
        for value in result.robust_accuracy.values():
            metrics["validation_robust_accuracy"] = value
        if self._stage.select == "best" and value > self._value:
            self._value, self.best = value, {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def state(self) -> dict[str, Tensor]:
        if not self.best:
            return {}
        value = torch.tensor(self._value, dtype=torch.float64)
        return {"value": value, **{f"best/{name}": tensor for name, tensor in self.best.items()}}

    def fits(self, state: Mapping[str, Tensor]) -> bool:
        network = {f"best/{name}": tensor for name, tensor in self._model.state_dict().items()}
        best = {"value": torch.zeros((), dtype=torch.float64), **network}
        if not state:
            return True
        return self._stage.select == "best" and alike(state, best) and 0 <= float(state["value"]) <= 1

    def restore(self, state: Mapping[str, Tensor]) -> None:
        if state:
            self._value = float(state["value"])
            self.best = {name.removeprefix("best/"): t for name, t in state.items() if name != "value"}
