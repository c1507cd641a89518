"""PwoA: a pruned network keeps its robustness without adversarial examples (Jian et al., arXiv:2210.04311)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hydraprune.core.objective import Batch, Context, Loss, Objective, accuracy
from hydraprune.core.spec import Number
from hydraprune.masks.view import PRUNABLE
from hydraprune.objectives.trades import divergence


def _normalized(kernel: Tensor) -> Tensor:
    """`K H (K H + eps * m * I)^-1` of a kernel matrix K (m, m), with H = I - 1/m and eps = 1e-5."""
    centred = kernel - kernel.mean(1, keepdim=True)
    ridge = 1e-5 * len(kernel) * torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    return torch.linalg.solve(centred + ridge, centred)  # the two factors commute


def _gaussian(x: Tensor, sigma: float) -> Tensor:
    """`exp(-|x_i - x_j|^2 / (2 * sigma^2 * d))` of x (m, ...) with d numbers in each row."""
    rows = x.float().flatten(1)
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    return (distances.double().square() / (-2 * sigma**2 * rows.shape[1])).exp()


@contextmanager
def _hidden(model: nn.Module) -> Iterator[list[Tensor]]:
    """Fills with what enters each convolution and linear layer, in the order of the passes."""
    seen: list[Tensor] = []

    def note(module: nn.Module, inputs: Any) -> None:
        seen.append(inputs[0])

    handles = [module.register_forward_pre_hook(note) for module in model.modules() if isinstance(module, PRUNABLE)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class PwoA(Objective):
    """Distillation from the robust network on natural images, and the HSIC bottleneck of the hidden layers.

    `weight * T^2 * KL(teacher || model) / classes + to_input * sum_h nHSIC(h, x) - to_label * sum_h nHSIC(h, y)`, with
    nHSIC(a, b) = tr(R_a R_b), R of a Gaussian kernel for images and layers and of a linear one for labels. h are the
    inputs of all convolutions and linear layers but the first; the authors name several layers of each net by hand. No
    image is attacked, so the cost is that of natural training and one m x m system per layer. The method prunes by
    ADMM with `to_input` and `to_label` 0, and retrains with those given here.

    Args:
        weight: of the distillation, above 0.
        temperature: of the distillation, above 0.
        to_input: penalty on what layers know of the image, at least 0.
        to_label: reward of what they know of the label, at least 0.
        sigma: width of the Gaussian kernel, in units of the square root of the number of features.

    Sample: `objective: {kind: pwoa}` in a stage with `networks: {teacher: pretrain}`
    """

    kind: Literal["pwoa"] = "pwoa"
    weight: Number = Field(default=10.0, gt=0)
    temperature: Number = Field(default=30.0, gt=0)
    to_input: Number = Field(default=2e-5, ge=0)
    to_label: Number = Field(default=1e-4, ge=0)
    sigma: Number = Field(default=5.0, gt=0)

    def networks(self) -> frozenset[str]:
        return frozenset({"teacher"})

    def __call__(self, model: nn.Module, batch: Batch, ctx: Context) -> Loss:
        teacher = ctx.network("teacher", self.kind)
        with torch.no_grad():
            target = teacher(batch.x).double()  # at this temperature float32 leaves little of the divergence
        with _hidden(model) as seen:
            logits = model(batch.x).float()
        classes, scale = logits.shape[1], self.temperature
        distilled = scale**2 * divergence(target / scale, logits.double() / scale).mean() / classes
        value = self.weight * distilled
        metrics = {"accuracy": accuracy(logits, batch.y), "distillation_loss": distilled.detach()}
        if self.to_input or self.to_label:
            to_input, to_label = self._bottleneck(seen[1:], batch, classes)
            value = value + self.to_input * to_input - self.to_label * to_label
            metrics |= {"hsic_input": to_input.detach(), "hsic_label": to_label.detach()}
        return Loss(value.float(), metrics)

    def _bottleneck(self, hidden: list[Tensor], batch: Batch, classes: int) -> tuple[Tensor, Tensor]:
        """Sums over layers of nHSIC with the images and with the labels."""
        labels = F.one_hot(batch.y, classes).double()
        of_images, of_labels = _normalized(_gaussian(batch.x, self.sigma)), _normalized(labels @ labels.T)
        total = sum((_normalized(_gaussian(h, self.sigma)) for h in hidden), torch.zeros_like(of_images))
        return (total * of_images.T).sum(), (total * of_labels.T).sum()
