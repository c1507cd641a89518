"""AutoAttack, the standard ensemble of the field (arXiv:2003.01690), by its authors' package."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hydraprune.attacks.seeded import seeded
from hydraprune.core.attack import Attack
from hydraprune.core.errors import EvaluationError
from hydraprune.core.threat import ThreatModel

NORMS = {"linf": "Linf", "l2": "L2"}
CLASSES = {"apgd-dlr": 3, "apgd-t": 4}
"""Fewest classes for which the loss of a part exists."""


class AutoAttack(Attack):
    """APGD-CE, targeted APGD-DLR, targeted FAB and Square, each on what the last left standing.

    With fewer than 10 classes the targeted attacks try every wrong class instead of 9. The package's warnings (a
    randomised or gradient-masking defence) go to the logger `auto-attack`.

    Args:
        version: `standard`; `plus` adds untargeted APGD-DLR and FAB with five restarts; `rand` is APGD with CE and DLR
            and gradients averaged over 20 passes, for a network that draws random numbers.
        batch_size: images per forward pass. The random numbers, and so the verdict on a borderline image, depend on it.

    Raises:
        EvaluationError: below 4 classes (`rand`: 3), where the DLR losses do not exist.

    Example: `{kind: autoattack}`.
    """

    library = "pyautoattack"

    kind: Literal["autoattack"] = "autoattack"
    version: Literal["standard", "plus", "rand"] = "standard"
    batch_size: int = Field(500, ge=1)

    @property
    def name(self) -> str:
        return "autoattack" if self.version == "standard" else f"autoattack-{self.version}"

    def search(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: torch.Generator) -> Tensor:
        return run(model, x, y, threat, rng, self.batch_size, version=self.version)


def run(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    rng: torch.Generator,
    batch_size: int,
    adjust: Callable[[Any], None] = lambda library: None,
    **settings: Any,
) -> Tensor:
    """What the package finds, (B, C, H, W): the image itself where it finds nothing.

    Args:
        model, x, y, threat, rng: as in `Attack.search`.
        batch_size: images per forward pass.
        adjust: changes the package's object before it runs.
        settings: `version`, or `version="custom"` and `attacks`.
    """
    import pyautoattack

    with torch.no_grad():
        classes = model(x[:1]).shape[1]
    tracer = sys.gettrace()
    # The package draws from torch's global generators, and leaves Python's tracing (coverage, debuggers) switched off.
    with seeded(rng) as seed:
        try:
            library = pyautoattack.AutoAttack(
                model, norm=NORMS[threat.norm], eps=threat.eps, seed=seed, device=x.device, **settings
            )
            for part in library.attacks_to_run:
                if classes < CLASSES.get(part, 2):
                    raise EvaluationError(
                        f"{part} needs at least {CLASSES[part]} classes, the network has {classes}; use pgd"
                    )
            library.apgd_targeted.n_target_classes = library.fab.n_target_classes = min(9, classes - 1)
            adjust(library)
            # It flattens gradients by `view`, which a channels-last batch does not allow.
            found, _ = library.run_standard_evaluation(x.contiguous(), y, batch_size=batch_size)
        finally:
            sys.settrace(tracer)
    return found
