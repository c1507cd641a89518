"""Settings of the minimum-norm attack, searched for each network: an untuned attack flatters the defender."""

from __future__ import annotations

import math

import torch
from torch import nn

from hydraprune.attacks.fmn import FMN
from hydraprune.core.objective import Batch
from hydraprune.core.threat import ThreatModel
from hydraprune.evaluation.worst_case import evaluate

STEP_SIZES, GAMMAS = (0.02, 10.0), (0.005, 0.3)
"""Ranges that are searched, evenly in their logarithms."""


def tuned(
    model: nn.Module, batch: Batch, threat: ThreatModel, *, attack: FMN, trials: int, steps: int, seed: int
) -> FMN:
    """`attack` with the step size and gamma that give the shortest changes on `batch`, by quasi-random search.

    The settings that `attack` has are the first trial, so the result is no worse than they are on these images.

    Args:
        model: the network, as for `evaluate`.
        batch: images to tune on; not those to report on.
        threat: its norm counts.
        attack: what is tuned.
        trials: settings that are tried.
        steps: gradient steps of a trial.
        seed: of the search.
    """
    draws = torch.quasirandom.SobolEngine(2, scramble=True, seed=seed).draw(trials, dtype=torch.float64)
    tried = [attack]
    for first, second in draws[1:].tolist():
        settings = {"step_size": _between(*STEP_SIZES, first), "gamma": _between(*GAMMAS, second)}
        tried.append(attack.model_copy(update=settings))
    lengths = []
    for candidate in tried:
        quick = candidate.model_copy(update={"steps": steps})
        found = evaluate(model, [batch], threat=threat, attacks=[quick], seed=seed)
        # An image without an adversarial one counts as far away, not as infinitely far: means are compared.
        lengths.append(found.distance[quick.name].clamp(max=1e3).mean().item())
    return tried[lengths.index(min(lengths))]


def _between(low: float, high: float, share: float) -> float:
    return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
