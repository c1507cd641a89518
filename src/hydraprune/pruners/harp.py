"""HARP: scores and the share that each layer keeps, learned together (arXiv:2412.14714)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hydraprune.core.objective import Clock
from hydraprune.core.spec import Number
from hydraprune.masks.budgets import Budget
from hydraprune.masks.source import FixedMask, LearnedMask, MaskSource, Over, selected
from hydraprune.masks.structures import Structure
from hydraprune.masks.topk import top_mask
from hydraprune.masks.view import MaskView
from hydraprune.pruners.base import Process, Pruner, Selection, masked_weights
from hydraprune.pruners.hydra import scaled
from hydraprune.pruners.probe import Probe


class LearnedRate(LearnedMask):
    """A learned mask whose share `least + (1 - least) * sigmoid(rate)` of kept groups is learned as well.

    With G the gradient at the masked weight, the share gets the sum of `G * weight` over all entries, kept or not.
    """

    def __init__(self, score: Tensor, share: float, least: float, structure: Structure) -> None:
        super().__init__(score, 0, structure)
        self.least = least
        self.groups = structure.groups(tuple(score.shape))
        inner = min(0.99, max(0.01, (share - least) / (1 - least))) if least < 1 else 0.5
        self.rate = nn.Parameter(torch.tensor(inner, device=score.device).logit())

    def share(self) -> Tensor:
        """The share of groups that stays, a scalar with gradient."""
        return self.least + (1 - self.least) * self.rate.sigmoid()

    def current(self) -> Tensor:
        self.keep = max(1, self.groups - int((1 - float(self.share().detach())) * self.groups))
        return super().current()

    def forward(self, weight: Tensor) -> Tensor:
        share = self.share()
        return super().forward(weight) + weight.detach() * (share - share.detach())


class HARP(Pruner):
    """Scores as in HYDRA, and a rate for each layer, under `L + gamma * max(share / target - 1, 0)`.

    `share` is what all layers together keep, `target` what the budget says; gamma grows by itself with every epoch
    until the target is met at an epoch's end. As the penalty stops there, the shares are then scaled so that the total
    is exact; no layer loses all.

    Args:
        start: share that the layers begin with, given to each as the budget would, if that is above the target.
        least: lowest share of a layer, as a fraction of the target.
        gamma: weight of the penalty in the first epoch; the authors prune CIFAR-10 to 1 % with 0.01.

    Sample: `pruner: {kind: harp, gamma: 0.01}`
    """

    kind: Literal["harp"] = "harp"
    over: ClassVar[Over] = "scores"
    start: Number = Field(default=0.1, gt=0, le=1)
    least: Number = Field(default=0.1, gt=0, le=1)
    gamma: Number = Field(default=1.0, gt=0)

    def score(self, view: MaskView, probe: Probe) -> dict[str, Tensor]:
        return {name: scaled(weight) for name, weight in masked_weights(view).items()}

    def unfit(self, budget: Budget | None, structure: Structure) -> str | None:
        if (reason := super().unfit(budget, structure)) or (budget and budget.counts == "groups"):
            return reason
        return "pruner 'harp' learns how many groups each layer keeps; use budget uniform and structure weight"

    def sources(self, selection: Selection, probe: Probe) -> dict[str, MaskSource]:
        scores, structures = self.score(selection.view, probe), selection.structures
        groups = {name: structures[name].groups(tuple(score.shape)) for name, score in scores.items()}
        target = sum(selection.keep(scores).values()) / sum(groups.values())
        first = selection.keep(scores, min(selection.budget.sparsity, 1 - self.start))
        return {
            name: LearnedRate(score, first[name] / groups[name], self.least * target, structures[name])
            for name, score in scores.items()
        }

    def process(self, selection: Selection, probe: Probe) -> Process:
        return Rates(selection, self.gamma)


class Rates(Process):
    """Presses the rates to the target, and meets it in the end."""

    def __init__(self, selection: Selection, gamma: float) -> None:
        self.view, self.gamma = selection.view, gamma
        self.sources = {n: s for n, s in self.view.sources.items() if isinstance(s, LearnedRate)}
        self.total = sum(selection.keep({name: s.score.detach() for name, s in self.sources.items()}).values())
        self.growth, self.met = 1, False

    def excess(self) -> Tensor:
        """By which fraction more is kept than the target, at least 0, with gradient."""
        kept = torch.stack([source.groups * source.share() for source in self.sources.values()]).sum()
        return (kept / self.total - 1).relu()

    def on_gradient(self, clock: Clock, optimizer: torch.optim.Optimizer) -> None:
        (self.gamma * self.growth * self.excess()).backward()

    @torch.no_grad()
    def on_epoch(self, epoch: int, model: nn.Module, metrics: dict[str, float]) -> None:
        metrics["excess"] = excess = float(self.excess())
        self.met = self.met or round(excess, 4) == 0
        self.growth += not self.met

    @torch.no_grad()
    def finish(self) -> None:
        # The best group of a layer that should keep q of them is worth q, the next q / 2, then q / 3: one threshold
        # over all layers scales the shares, as far as layers go.
        each = [
            float(source.share()) * source.groups / torch.arange(1, source.groups + 1, dtype=torch.float64)
            for source in self.sources.values()
        ]
        for worth in each:
            worth[0] = torch.inf
        kept, _ = top_mask(torch.cat(each), self.total)
        parts = kept.split([len(worth) for worth in each])
        self.view.attach(
            {
                name: FixedMask(selected(source.score, int(part.sum()), source.structure))
                for (name, source), part in zip(self.sources.items(), parts, strict=True)
            }
        )

    def state(self) -> dict[str, Tensor]:
        return {"growth": torch.tensor(self.growth), "met": torch.tensor(self.met)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.growth, self.met = int(state["growth"]), bool(state["met"])
