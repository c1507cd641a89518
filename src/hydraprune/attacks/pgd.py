"""Projected gradient descent with restarts, for evaluation (arXiv:1706.06083)."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from hydraprune.attacks.gradient import ascend, step_length
from hydraprune.core.attack import Attack
from hydraprune.core.errors import EvaluationError
from hydraprune.core.spec import Number
from hydraprune.core.threat import ThreatModel


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """(B,) cross-entropy of logits (B, K) against labels (B,)."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """(B,) best wrong logit minus the logit of `y`: positive where misclassified (arXiv:1608.04644, f_6)."""
    wrong = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    return wrong - logits.gather(1, y[:, None]).squeeze(1)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """(B,) the margin over the range from the largest to the third largest logit (arXiv:2003.01690, eq. 6).

    Raises:
        EvaluationError: below 3 classes, where it does not exist.
    """
    if logits.shape[1] < 3:
        raise EvaluationError(f"the DLR loss needs at least 3 classes, the network has {logits.shape[1]}; use margin")
    ordered = logits.topk(3, dim=1).values
    return margin(logits, y) / (ordered[:, 0] - ordered[:, 2] + 1e-12)


Loss = Literal["ce", "margin", "dlr"]
LOSSES = {"ce": cross_entropy, "margin": margin, "dlr": dlr}


class PGD(Attack):
    """Steepest ascent from uniform starts. An image falls as soon as one iterate of one restart is misclassified.

    A fallen image is dropped at once from the batch and from later restarts; every restart draws its noise for all
    images, so the verdicts are those of the full loop.

    Args:
        steps: gradient steps per restart.
        restarts: random starts per image.
        step_size: length of a step in the threat's norm; by default 2.5 eps / steps (arXiv:1706.06083), which reaches
            the border of the ball from any start and can still move along it.
        loss: `ce`; `margin` where saturated logits starve the cross-entropy of gradient; `dlr`, the margin without its
            scale.
        eot_samples: passes over which each gradient and each verdict is a mean, for a network that draws random numbers
            in evaluation mode; a deterministic one gains nothing from more than 1.

    Example: `{kind: pgd, steps: 50, restarts: 10}`.
    """

    kind: Literal["pgd"] = "pgd"
    steps: int = Field(50, ge=1)
    restarts: int = Field(10, ge=1)
    step_size: Number | None = Field(None, gt=0)
    loss: Loss = "ce"
    eot_samples: int = Field(1, ge=1)

    @property
    def name(self) -> str:
        loss = f"-{self.loss}" if self.loss != "ce" else ""
        return f"pgd-{self.steps}x{self.restarts}{loss}" + (f"-eot{self.eot_samples}" if self.eot_samples > 1 else "")

    def search(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: torch.Generator) -> Tensor:
        step_size = step_length(threat, self.steps) if self.step_size is None else self.step_size
        worst = x.clone()
        standing = torch.arange(len(x), device=x.device)
        for _ in range(self.restarts):
            adversarial = threat.sample(x, rng)[standing]
            here, labels = x[standing], y[standing]
            for _ in range(self.steps):
                loss = partial(LOSSES[self.loss], y=labels)
                moved, logits = ascend(model, here, adversarial, threat, loss, step_size, samples=self.eot_samples)
                held = logits.argmax(1) == labels
                if not held.all():
                    worst[standing[~held]] = adversarial[~held]
                    standing, here, labels, moved = standing[held], here[held], labels[held], moved[held]
                    if len(standing) == 0:
                        return worst
                adversarial = moved
            worst[standing] = adversarial
            with torch.no_grad():
                logits = torch.stack([model(adversarial) for _ in range(self.eot_samples)]).mean(0)
            standing = standing[logits.argmax(1) == labels]
            if len(standing) == 0:
                return worst
        return worst
