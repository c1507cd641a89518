"""Adversarial weight perturbation: a robust loss that is flat in the weights (Wu et al., arXiv:2004.05884)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hydraprune.core.objective import Batch, Context, Loss, Objective
from hydraprune.core.plain import once
from hydraprune.core.spec import Number
from hydraprune.objectives import OBJECTIVES
from hydraprune.objectives.trades import TRADES


def _weights(model: nn.Module) -> list[Tensor]:
    """The weights in use that a gradient reaches, each once: all that have more than one axis, masks applied."""
    found = [getattr(module, "weight", None) for module in model.modules()]
    return list({id(w): w for w in found if isinstance(w, Tensor) and w.dim() > 1 and w.requires_grad}.values())


def _statistics(model: nn.Module) -> list[Tensor]:
    norms = [module for module in model.modules() if getattr(module, "running_mean", None) is not None]
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]


class AWP(Objective):
    """The base objective at weights `w + v`, v being the worst perturbation within `gamma * |w|` in every layer.

    v is one step along the gradient of the objective, `gamma * |w| * g / |g|` with Euclidean norms (equation 10), at
    the adversarial examples of w. The gradient that it leaves moves w, or the scores that w is masked by: what is
    perturbed is the weight in use, so pruned weights stay zero. The attack of the base runs a second time, with the
    same random numbers; norm statistics see the second pass alone.

    Args:
        base: the objective whose loss is to be flat.
        gamma: length of v relative to that of the weight, above 0; the authors take 0.005 with TRADES and 0.01 with
            adversarial training.
        warmup: epochs of the base objective alone, at first.

    Sample: `objective: {kind: awp, base: {kind: trades}}`
    """

    kind: Literal["awp"] = "awp"
    base: Annotated[Objective, OBJECTIVES] = TRADES()
    gamma: Number = Field(default=0.005, gt=0)
    warmup: int = Field(default=0, ge=0)

    def parts(self) -> tuple[Objective, ...]:
        return (self.base,)

    def __call__(self, model: nn.Module, batch: Batch, ctx: Context) -> Loss:
        if ctx.clock.epoch < self.warmup:
            return self.base(model, batch, ctx)
        with once(model):
            weights, buffers = _weights(model), _statistics(model)
            before, random = [buffer.clone() for buffer in buffers], ctx.rng.get_state()
            value = self.base(model, batch, ctx).value
            slopes = torch.autograd.grad(value, weights, materialize_grads=True)
            ctx.rng.set_state(random)
            with torch.no_grad():
                for buffer, old in zip(buffers, before, strict=True):
                    buffer.copy_(old)
                for weight, slope in zip(weights, slopes, strict=True):
                    self._perturb(weight, slope, ctx)
            return self.base(model, batch, ctx)

    def _perturb(self, weight: Tensor, slope: Tensor, ctx: Context) -> None:
        old, slope = weight.detach().clone(), slope * (weight != 0)
        weight.add_(slope * (self.gamma * old.norm() / slope.norm().clamp_min(1e-12)))

        @torch.no_grad()
        def restore() -> None:
            weight.copy_(old)

        ctx.after_backward.append(restore)
