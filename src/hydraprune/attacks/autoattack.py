"""AutoAttack, the standard ensemble of the field (arXiv:2003.01690), by its authors' package."""

from __future__ import annotations

import sys
from typing import Literal

import pyautoattack
import torch
from pydantic import Field
from torch import Tensor, nn

from hydraprune.core.attack import Attack
from hydraprune.core.errors import EvaluationError
from hydraprune.core.threat import ThreatModel

NORMS = {"linf": "Linf", "l2": "L2"}


class AutoAttack(Attack):
    """The `standard` version: APGD-CE, targeted APGD-DLR, targeted FAB and Square, each on what the last left standing.

    With fewer than 10 classes the targeted attacks try every wrong class instead of 9. The package's warnings (a
    randomised or gradient-masking defence) go to the logger `auto-attack`.

    Args:
        batch_size: images per forward pass. The random numbers, and so the verdict on a borderline image, depend on it.

    Raises:
        EvaluationError: below 4 classes, where the targeted DLR loss does not exist.

    Example: `{kind: autoattack}`.
    """

    kind: Literal["autoattack"] = "autoattack"
    batch_size: int = Field(500, ge=1)

    @property
    def name(self) -> str:
        return "autoattack"

    def search(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: torch.Generator) -> Tensor:
        with torch.no_grad():
            classes = model(x[:1]).shape[1]
        if classes < 4:
            raise EvaluationError(f"AutoAttack needs at least 4 classes, the network has {classes}; use pgd")
        seed = int(torch.randint(2**31, (), generator=rng, device=rng.device))
        cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        tracer = sys.gettrace()
        # The package seeds torch's global generators, and leaves Python's tracing (coverage, debuggers) switched off.
        with torch.random.fork_rng(devices=list(cuda)):
            try:
                ensemble = pyautoattack.AutoAttack(
                    model, norm=NORMS[threat.norm], eps=threat.eps, seed=seed, device=x.device
                )
                targets = min(9, classes - 1)
                ensemble.apgd_targeted.n_target_classes = ensemble.fab.n_target_classes = targets
                # It flattens gradients by `view`, which a channels-last batch does not allow.
                found, _ = ensemble.run_standard_evaluation(x.contiguous(), y, batch_size=self.batch_size)
            finally:
                sys.settrace(tracer)
        return found
