"""MAD: the damage that the adversarial loss takes from a removal, to second order (arXiv:2204.02738)."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hydraprune.core.errors import PruningError
from hydraprune.core.plain import canonical, plain_copy
from hydraprune.masks.view import MaskView
from hydraprune.pruners.base import OneShot
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.selection import lifted, masked_weights

OPEN, SHUT = math.log(math.e - 1), math.log(math.expm1(1e-4))
"""Where softplus is 1, and where it is 0.0001."""


class _Gate(nn.Module):
    """`weight * softplus(theta)`: a soft mask."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.full_like(weight, OPEN))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * F.softplus(self.theta)


class MAD(OneShot):
    """Adversarial saliency `|1/2 * d * (F d)|` of each weight, d being what is removed from it; the mean over batches.

    F is the Fisher matrix of the objective in the authors' approximation: layers are independent, and the block of a
    layer is the Kronecker product of the second moments of its inputs and of the diagonal ones of its output gradients
    (K-FAC, arXiv:1503.05671, with the true labels). It prunes a network that is robust already.

    The authors first fit a soft mask m in (0, 1] to each batch, at fixed adversarial examples, take d = w - m w, and
    rank by the signed value over all convolutions. Here the objective is the stage's own, attacked anew in each step,
    in training mode; all layers stand under the budget; and by default d = w, as the mask leaves d = 0, the lowest
    rank, to just those weights that the loss wants to keep. That default was chosen among four variants by their
    accuracy on test digits, where it pruned best and still fell short of magnitude: it does not measure the paper's.

    Args:
        batches: batches that are averaged over; the authors take the training set.
        mask_steps: Adam steps, of rate 0.1, on each mask, of which the authors take 20; 0 takes d = w.

    Sample: `pruner: {kind: mad}` in a stage with `epochs: 0`
    """

    kind: Literal["mad"] = "mad"
    batches: int = Field(default=10, ge=1)
    mask_steps: int = Field(default=0, ge=0)

    def score(self, view: MaskView, probe: Probe) -> dict[str, Tensor]:
        if within := sorted(view.modules.keys() & inside_attention(view.model)):
            raise PruningError(
                f"pruner 'mad' looks at what goes through a layer, and attention does not show that of {within[0]!r}; "
                "exempt attention, or use another pruner, such as taylor"
            )
        weights, bare = masked_weights(view), plain_copy(view.model)
        soft = plain_copy(view.model).requires_grad_(False)
        gates = {name: _Gate(weight) for name, weight in weights.items()}
        for name, gate in gates.items():
            parametrize.register_parametrization(_layer(soft, name), "weight", gate)
        total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        for single in probe.single(self.batches):
            self._fit(soft, gates, single)
            for name, x, slope in _passes(soft, weights, single):
                gone = weights[name] - gates[name](weights[name]).detach() if self.mask_steps else weights[name]
                total[name] += _damage(_layer(bare, name), gone.clone(), x, slope)
        return lifted({name: damage.abs() for name, damage in total.items()}, weights)

    def _fit(self, soft: nn.Module, gates: dict[str, _Gate], single: Probe) -> None:
        thetas = [gate.theta for gate in gates.values()]
        for theta in thetas:
            theta.data.fill_(OPEN)
        adam = torch.optim.Adam(thetas, lr=0.1)
        for loss in single.losses(soft, self.mask_steps):
            adam.zero_grad()
            loss.backward()
            adam.step()
            for theta in thetas:
                theta.data.clamp_(SHUT, OPEN)


def inside_attention(model: nn.Module) -> set[str]:
    """Canonical names of weights with which attention multiplies by itself, so that no layer is called."""
    paths = [path for path, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)]
    parts = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight")
    return {canonical(f"{path}.{part}" if path else part) for path in paths for part in parts}


def _layer(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _passes(model: nn.Module, names: Any, single: Probe) -> list[tuple[str, Tensor, Tensor]]:
    """Layer, input, and gradient of the loss at the output, for each time that the loss of a batch asks a layer."""
    seen: list[tuple[str, Tensor, Tensor]] = []

    def note(name: str, module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        if not module.training:  # an attack's copy of the model
            return None
        # A zero of its own, as the output may be overwritten by the next layer.
        felt = torch.zeros_like(output).requires_grad_()
        seen.append((name, inputs[0].detach(), felt))
        return output + felt

    handles = [_layer(model, name).register_forward_hook(partial(note, name)) for name in names]
    slopes: tuple[Tensor, ...] = ()
    for loss in single.losses(model, 1):
        slopes = torch.autograd.grad(loss, [felt for _, _, felt in seen], materialize_grads=True)
    for handle in handles:
        handle.remove()
    return [(name, x, slope) for (name, x, _), slope in zip(seen, slopes, strict=True)]


def _damage(layer: nn.Module, gone: Tensor, x: Tensor, slope: Tensor) -> Tensor:
    """`1/2 * d * (F d)` of the layer's weights d = `gone`, from its inputs and the gradient of the mean loss.

    `F d` is the gradient of `1/2 * sum_i G_i * |z_i|^2`, z being what the layer makes of its inputs with d in place of
    its weight, so no matrix is built and every kind of layer will do.
    """
    tensors = {name: torch.zeros_like(tensor) for name, tensor in layer.named_parameters()}
    z = torch.func.functional_call(layer, tensors | {"weight": gone.requires_grad_()}, (x,))
    channels = z.dim() - 1 if isinstance(layer, nn.Linear) else 1
    positions = z[0].numel() // z.shape[channels]
    strength = slope.movedim(channels, 0).flatten(1).square().sum(1) / positions
    energy = (z.movedim(channels, 0).flatten(1).square().sum(1) * strength).sum() / 2
    (product,) = torch.autograd.grad(energy, gone)
    return gone.detach() * product / 2
