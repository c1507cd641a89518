"""A training run of nine steps on real digits, and ways to cut it short. Run as a program, it trains for `kill -9`."""

import sys
import time
from functools import cache
from pathlib import Path

import torch
from torch import nn

from hydraprune.core.objective import Objective
from hydraprune.core.threat import ThreatModel
from hydraprune.data import SOURCES, Batches
from hydraprune.masks.budgets import Uniform
from hydraprune.masks.view import MaskView
from hydraprune.objectives.trades import TRADES
from hydraprune.pruners.hydra import Hydra
from hydraprune.pruners.pruning import prune
from hydraprune.train import Hook, Optim, fit

THREAT = ThreatModel(eps=0.1)
ROBUST = TRADES(steps=1)
STEPS, EPOCHS = 3, 3

OPTIMS = {
    "sgd": Optim(lr=0.05, nesterov=True, ema=0.9, warmup_epochs=1),
    "adam": Optim(kind="adam", lr=0.01, clip_norm=1.0, ema=0.95, schedule="onecycle"),
    "adamw": Optim(kind="adamw", lr=0.01, schedule="step"),
}


class Killed(BaseException):
    """Ends a run as a signal would: nothing in the package may catch it."""


class KillAtStep(Hook):
    """Raises after `step` optimizer steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, clock, images, loss):
        if clock.step == self.step:
            raise Killed


class KillAfterEpoch(Hook):
    """Raises when `epoch` is done, and not yet saved."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_epoch(self, epoch, model, metrics):
        if epoch == self.epoch:
            raise Killed


@cache
def digits():
    """The training images of 80 digits, 72 of them, augmented by crops and flips."""
    return SOURCES.make({"kind": "digits", "samples": 80, "flip": True}, "data").load().train


def batches(size: int = 24, seed: int = 7, **settings) -> Batches:
    return digits().batches(size, seed=seed, augment=True, shuffle=True, **settings)


def plain_net() -> nn.Sequential:
    """Without norm layers or dropout."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10))


def net() -> nn.Sequential:
    """With batch norm and dropout."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3),
        nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def masked(model: nn.Module) -> nn.Module:
    """`model`, to be pruned to 60 % by HYDRA."""
    prune(MaskView(model), Hydra(), Uniform(sparsity=0.6))
    return model


def train(
    over: str, optim: Optim, objective: Objective = ROBUST, **settings
) -> tuple[nn.Module, list[dict[str, float]]]:
    """A fresh net after `fit`, and its history without wall times."""
    model = masked(net())
    params = MaskView(model).train(over)
    settings = {"epochs": EPOCHS, "threat": THREAT, "seed": 3, **settings}
    history = fit(model, params, batches(), objective, optim=optim, **settings)
    return model, [{name: value for name, value in line.items() if name != "seconds"} for line in history]


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether every tensor of two models agrees bit for bit."""
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in mine.items())


class Slowly(Hook):
    """Says each step on standard output, and leaves time for a signal."""

    def on_step(self, clock, images, loss):
        print(clock.step, flush=True)
        time.sleep(0.2)


if __name__ == "__main__":
    torch.set_num_threads(1)
    train("scores", OPTIMS["sgd"], state=Path(sys.argv[1]), hooks=[Slowly()])
