"""Natural training: cross-entropy on clean images."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import nn

from hydraprune.core.objective import Batch, Context, Loss, Objective, accuracy


class Natural(Objective):
    """Cross-entropy on clean images.

    Sample: `objective: {kind: natural}`
    """

    kind: Literal["natural"] = "natural"

    def __call__(self, model: nn.Module, batch: Batch, ctx: Context) -> Loss:
        logits = model(batch.x).float()
        loss = F.cross_entropy(logits, batch.y)
        return Loss(loss, {"accuracy": accuracy(logits, batch.y)})
