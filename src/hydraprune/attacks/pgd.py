"""Projected gradient descent with restarts, for evaluation (arXiv:1706.06083)."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from hydraprune.attacks.gradient import ascend
from hydraprune.core.attack import Attack
from hydraprune.core.spec import Number
from hydraprune.core.threat import ThreatModel


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """(B,) cross-entropy of logits (B, K) against labels (B,)."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """(B,) best wrong logit minus the logit of `y`: positive where misclassified (arXiv:1608.04644, f_6)."""
    wrong = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    return wrong - logits.gather(1, y[:, None]).squeeze(1)


LOSSES = {"ce": cross_entropy, "margin": margin}


class PGD(Attack):
    """Steepest ascent from uniform starts. An image falls as soon as one iterate of one restart is misclassified.

    A fallen image is dropped at once from the batch and from later restarts; every restart draws its noise for all
    images, so the verdicts are those of the full loop.

    Args:
        steps: gradient steps per restart.
        restarts: random starts per image.
        step_size: length of a step in the threat's norm; by default 2.5 eps / steps (arXiv:1706.06083), which reaches
            the border of the ball from any start and can still move along it.
        loss: `ce`, or `margin` where saturated logits starve the cross-entropy of gradient.

    Example: `{kind: pgd, steps: 50, restarts: 10}`.
    """

    kind: Literal["pgd"] = "pgd"
    steps: int = Field(50, ge=1)
    restarts: int = Field(10, ge=1)
    step_size: Number | None = Field(None, gt=0)
    loss: Literal["ce", "margin"] = "ce"

    @property
    def name(self) -> str:
        return f"pgd-{self.steps}x{self.restarts}" + ("-margin" if self.loss == "margin" else "")

    def search(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: torch.Generator) -> Tensor:
        step_size = 2.5 * threat.eps / self.steps if self.step_size is None else self.step_size
        worst = x.clone()
        standing = torch.arange(len(x), device=x.device)
        for _ in range(self.restarts):
            adversarial = threat.sample(x, rng)[standing]
            here, labels = x[standing], y[standing]
            for _ in range(self.steps):
                loss = partial(LOSSES[self.loss], y=labels)
                moved, logits = ascend(model, here, adversarial, threat, loss, step_size)
                held = logits.argmax(1) == labels
                if not held.all():
                    worst[standing[~held]] = adversarial[~held]
                    standing, here, labels, moved = standing[held], here[held], labels[held], moved[held]
                    if len(standing) == 0:
                        return worst
                adversarial = moved
            worst[standing] = adversarial
            with torch.no_grad():
                standing = standing[model(adversarial).argmax(1) == labels]
            if len(standing) == 0:
                return worst
        return worst
