"""A small network whose training passes are recorded, and the attack of the papers as a literal loop."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hydraprune.core.objective import Batch, Clock, Context
from hydraprune.core.threat import ThreatModel
from hydraprune.masks.budgets import Uniform
from hydraprune.masks.view import MaskView
from hydraprune.pruners.hydra import Hydra
from hydraprune.pruners.pruning import prune

BATCH = Batch(torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(5)), torch.arange(6) % 3)


def small(*, norm: bool = False, dropout: bool = False, over: str = "weights") -> nn.Module:
    """In training mode, everything frozen that a stage over `over` does not move."""
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Dropout(0.5) if dropout else nn.Identity(),
        nn.Flatten(),
        nn.Linear(4 * 16, 3),
    )
    view = MaskView(net)
    if over == "scores":
        prune(view, Hydra(), Uniform(sparsity=0.5))
    view.train(over)
    return net.train()


def context(threat: ThreatModel | None, seed: int = 0) -> Context:
    return Context(threat, torch.Generator().manual_seed(seed), Clock(0, 1, 1))


def record(net: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Lists that fill with the images of forward passes in training mode, and in evaluation mode (copies too)."""
    training, evaluation = [], []

    def note(module, inputs):
        if isinstance(inputs[0], Tensor):  # bounds trace the network without images
            (training if module.training else evaluation).append(inputs[0].detach().clone())

    net.register_forward_pre_hook(note)
    return training, evaluation


def literal_attack(
    net: nn.Module, x: Tensor, first: Tensor, threat: ThreatModel, loss: Callable, steps: int, size: float
) -> Tensor:
    """Gradient steps on one image after the other, each clipped to the ball and to the pixel range."""
    net = copy.deepcopy(net).eval()
    found = []
    for i, image in enumerate(first):
        for _ in range(steps):
            image = image.detach().requires_grad_()
            loss(net(image[None]), i).backward()
            g = image.grad
            step = g.sign() if threat.norm == "linf" else g / g.norm()
            delta = image.detach() + size * step - x[i]
            if threat.norm == "linf":
                delta = delta.clamp(-threat.eps, threat.eps)
            elif delta.norm() > threat.eps:
                delta = delta * threat.eps / delta.norm()
            image = (x[i] + delta).clamp(0, 1)
        found.append(image.detach())
    return torch.stack(found)


def cross_entropy_of(y: Tensor) -> Callable:
    return lambda logits, i: F.cross_entropy(logits, y[i : i + 1])
