"""Networks that are both compact and robust: prune with the robust training objective itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hydraprune.core.lazy import lazy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hydraprune import attacks, bounds, objectives, pruners
    from hydraprune.attacks.autoattack import AutoAttack
    from hydraprune.attacks.pgd import PGD as PGDAttack
    from hydraprune.bounds.certify import logit_bounds, margin_bounds
    from hydraprune.core.errors import HydrapruneError
    from hydraprune.core.objective import Batch, Context, Loss, Objective
    from hydraprune.core.results import Record
    from hydraprune.core.threat import ThreatModel
    from hydraprune.data.dataset import Dataset
    from hydraprune.deploy.latency import latency
    from hydraprune.deploy.ship import export
    from hydraprune.deploy.worth import Worth
    from hydraprune.evaluation.smoothing import Smoothing
    from hydraprune.evaluation.verdicts import Evaluation
    from hydraprune.evaluation.verification import Verification, verify
    from hydraprune.evaluation.worst_case import evaluate
    from hydraprune.masks import budgets, structures
    from hydraprune.masks.budgets import ERK, Global, Uniform
    from hydraprune.masks.quantize import quantized
    from hydraprune.masks.shrink import shrink
    from hydraprune.masks.view import MaskView
    from hydraprune.nets.spec import Net
    from hydraprune.objectives.fast import Fast
    from hydraprune.objectives.free import Free
    from hydraprune.objectives.mart import MART
    from hydraprune.objectives.natural import Natural
    from hydraprune.objectives.pgd import PGD
    from hydraprune.objectives.trades import TRADES
    from hydraprune.pruners.base import Pruner
    from hydraprune.pruners.hydra import Hydra
    from hydraprune.pruners.magnitude import Magnitude
    from hydraprune.pruners.probe import Probe
    from hydraprune.pruners.pruning import Pruning, prune
    from hydraprune.pruners.random import Random
    from hydraprune.recipes.library import load_recipe
    from hydraprune.recipes.runner import run
    from hydraprune.runs.checkpoint import load, save
    from hydraprune.runs.imports import import_checkpoint
    from hydraprune.train.fit import fit
    from hydraprune.train.optim import Optim


def load_data(kind: str, **settings: object) -> Dataset:
    """The data set called `kind` (`digits`, `cifar10`, `svhn`, `images`), such as `load_data("cifar10", path="data")`.

    Raises:
        SpecError: for an unknown kind or setting.
        DataError: if the data is missing or unreadable.
    """
    from hydraprune.data import SOURCES

    return SOURCES.make({"kind": kind, **settings}, "data").load()


def certify(
    model: nn.Module, x: Tensor, *, sigma: float, n0: int = 100, n: int = 100_000, alpha: float = 0.001, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Class (B,), or -1 to abstain, and certified l2 radius (B,) of images `x` (B, C, H, W) under Gaussian noise.

    See `Smoothing` for the settings; data sets are certified by `evaluation.smoothing.certify_dataset`.

    Raises:
        SpecError: for a setting out of range, such as `sigma` 0.
        DataError: for images outside [0, 1].
        EvaluationError: for logits that are not finite.
    """
    from hydraprune.evaluation import smoothing

    found = smoothing.certify(model, x, smoothing.Smoothing(sigma=sigma, n0=n0, n=n, alpha=alpha), seed=seed)
    return found.label, found.radius


__all__ = [
    "ERK",
    "MART",
    "PGD",
    "TRADES",
    "AutoAttack",
    "Batch",
    "Context",
    "Dataset",
    "Evaluation",
    "Fast",
    "Free",
    "Global",
    "Hydra",
    "HydrapruneError",
    "Loss",
    "Magnitude",
    "MaskView",
    "Natural",
    "Net",
    "Objective",
    "Optim",
    "PGDAttack",
    "Probe",
    "Pruner",
    "Pruning",
    "Random",
    "Record",
    "Smoothing",
    "ThreatModel",
    "Uniform",
    "Verification",
    "Worth",
    "attacks",
    "bounds",
    "budgets",
    "certify",
    "evaluate",
    "export",
    "fit",
    "import_checkpoint",
    "latency",
    "load",
    "load_data",
    "load_recipe",
    "logit_bounds",
    "margin_bounds",
    "objectives",
    "prune",
    "pruners",
    "quantized",
    "run",
    "save",
    "shrink",
    "structures",
    "verify",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__)
