"""A stage that changes a network in a way of its own."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from hydraprune.masks.view import MaskView
from hydraprune.recipes.runner import Run
from hydraprune.recipes.stages import Stage
from hydraprune.runs.checkpoint import save
from hydraprune.runs.files import finished


class Round(Stage):
    """Rounds the weights of the network before it.

    Args:
        levels: steps from 0 to the largest |weight| of a layer.
    """

    kind: Literal["round"] = "round"
    name: str = "round"
    trains: ClassVar[bool] = True
    levels: int = Field(default=7, ge=1)

    @torch.no_grad()
    def run(self, run: Run) -> None:
        folder = run.folder(self.name)
        if not run.fabric.is_global_zero or finished(folder):
            return
        checkpoint = run.open(run.before(self)[-1])
        model = checkpoint.network()
        for weight in MaskView(model).weights().values():
            step = weight.abs().max() / self.levels
            weight.copy_((weight / step).round() * step)
        run.note()
        with run.alone(folder):
            save(folder, model, checkpoint.meta)
        run.tell(f"{self.name}: rounded to {self.levels} levels")
