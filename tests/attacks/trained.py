"""A small network that is robust to some degree, trained in a second on the digits of scikit-learn."""

from functools import cache, partial

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from hydraprune.attacks.gradient import pgd
from hydraprune.core.objective import Batch
from hydraprune.core.threat import ThreatModel

THREAT = ThreatModel(norm="linf", eps=0.2)
"""Breaks about four in ten of the test images."""


@cache
def digits() -> tuple[nn.Module, Batch]:
    """A trained network in evaluation mode with batch norm, and 256 test images (256, 1, 8, 8). Not to be changed."""
    raw = load_digits()
    images = torch.tensor(raw.images / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(raw.target, dtype=torch.int64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10),
        )  # fmt: skip
        rng = torch.Generator().manual_seed(0)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(8):
            for rows in torch.randperm(1536).split(128):
                x, y = images[rows], labels[rows]
                loss = partial(F.cross_entropy, target=y, reduction="none")
                bad = pgd(net.eval(), x, THREAT, loss, steps=3, step_size=0.1, start="uniform", rng=rng)
                optimizer.zero_grad()
                F.cross_entropy(net.train()(bad), y).backward()
                optimizer.step()
    return net.eval(), Batch(images[1536:1792], labels[1536:1792])
