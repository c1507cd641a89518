"""HARP: scores and the share that each layer keeps, learned together (arXiv:2412.14714)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from hydraprune.core.spec import Number
from hydraprune.masks.budgets import Budget
from hydraprune.masks.source import LearnedRate, MaskSource
from hydraprune.masks.structures import Structure
from hydraprune.masks.topk import affordable
from hydraprune.masks.view import MaskView
from hydraprune.pruners.base import Learned, fixed
from hydraprune.pruners.hydra import scaled
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.pruning import Pruning
from hydraprune.pruners.selection import Selection, masked_weights


class HARP(Learned):
    """Scores as in HYDRA, and a rate for each layer, under `L + gamma * max(share / target - 1, 0)`.

    `share` is what all layers together keep, `target` what the budget says: of the groups, or, with budgets
    `parameters` and `flops`, of the weights or multiplications. gamma grows by itself with every epoch until the target
    is met at an epoch's end. As the penalty stops there, the shares are then scaled so that the total is exact; no
    layer loses all. The authors' FLOPs also fall with the channels that other layers remove; here they do not.

    Args:
        start: share that the layers begin with, given to each as the budget would, if that is above the target.
        least: lowest share of a layer, as a fraction of the target.
        gamma: weight of the penalty in the first epoch; the authors prune CIFAR-10 to 1 % with 0.01.

    Sample: `pruner: {kind: harp, gamma: 0.01}`
    """

    kind: Literal["harp"] = "harp"
    start: Number = Field(default=0.1, gt=0, le=1)
    least: Number = Field(default=0.1, gt=0, le=1)
    gamma: Number = Field(default=1.0, gt=0)

    @property
    def paced(self) -> bool:
        return True

    def score(self, view: MaskView, probe: Probe) -> dict[str, Tensor]:
        return {name: scaled(weight) for name, weight in masked_weights(view).items()}

    def unfit(self, budget: Budget | None, structure: Structure) -> str | None:
        if (reason := super().unfit(budget, structure)) or budget:
            return reason
        return (
            f"pruner 'harp' learns how many groups each layer keeps, and structure {structure.kind!r} says that "
            "itself, so there is nothing to learn; use budget uniform and structure weight"
        )

    def begin(self, pruning: Pruning, probe: Probe) -> Mapping[str, MaskSource]:
        selection = pruning.selection
        scores, structures = self.score(pruning.view, probe), selection.structures
        total, whole = affords(selection, scores)
        pruning.memory |= {"total": torch.tensor(total), "growth": torch.tensor(1), "met": torch.tensor(False)}
        first = selection.keep(scores, min(selection.budget.sparsity, 1 - self.start))
        sources: dict[str, MaskSource] = {}
        for name, score in scores.items():
            groups = structures[name].groups(tuple(score.shape))
            sources[name] = LearnedRate(score, first[name] / groups, self.least * total / whole, structures[name])
        return sources

    def ready(self, pruning: Pruning) -> None:
        pruning.cache["sizes"] = {name: int(price.sum()) for name, price in prices(pruning.selection).items()}

    def excess(self, pruning: Pruning) -> Tensor:
        """By which fraction more is kept than the target, at least 0, with gradient."""
        sizes = pruning.cache["sizes"]
        kept = torch.stack([sizes[name] * source.share() for name, source in rates(pruning).items()]).sum()
        return (kept / int(pruning.memory["total"]) - 1).relu()

    def step(self, pruning: Pruning) -> Iterator[None]:
        with torch.enable_grad():
            (self.gamma * int(pruning.memory["growth"]) * self.excess(pruning)).backward()
        yield

    def after_epoch(self, pruning: Pruning, metrics: dict[str, float]) -> None:
        memory = pruning.memory
        metrics["excess"] = excess = float(self.excess(pruning))
        if round(excess, 4) == 0:
            memory["met"].fill_(True)
        memory["growth"] += ~memory["met"]

    def finish(self, pruning: Pruning) -> None:
        # The best group of a layer that should keep q of them is worth q, the next q / 2, then q / 3: one threshold
        # over all layers scales the shares, as far as layers go.
        selection, sources, worths = pruning.selection, rates(pruning), []
        for source in sources.values():
            worth = float(source.share()) * source.groups / torch.arange(1, source.groups + 1, dtype=torch.float64)
            worth[: max(1, selection.budget.floor)] = torch.inf
            order = source.structure.pool(source.score).argsort(stable=True).flip(0).cpu()
            worths.append(torch.empty_like(worth).index_copy(0, order, worth))
        total = int(pruning.memory["total"])
        kept = affordable(torch.cat(worths), torch.cat(list(prices(selection).values())), total)
        parts = kept.to(source.score.device).split([len(worth) for worth in worths])
        masks = {
            name: source.structure.expand(part, tuple(source.score.shape)).clone(memory_format=torch.contiguous_format)
            for (name, source), part in zip(sources.items(), parts, strict=True)
        }
        pruning.view.attach(fixed(masks))


def rates(pruning: Pruning) -> dict[str, LearnedRate]:
    """The masks, whose shares are learned."""
    return {name: source for name, source in pruning.view.sources.items() if isinstance(source, LearnedRate)}


def prices(selection: Selection) -> dict[str, Tensor]:
    """Name -> (groups,) what each group has of what the budget counts."""
    shapes = {name: tuple(weight.shape) for name, weight in selection.view.weights().items()}
    groups = {name: selection.structures[name].groups(shape) for name, shape in shapes.items()}
    return selection.costs(shapes) or {name: torch.ones(count, dtype=torch.long) for name, count in groups.items()}


def affords(selection: Selection, scores: dict[str, Tensor]) -> tuple[int, int]:
    """What all layers together may keep of what the budget counts, and what they have of it."""
    whole = sum(int(price.sum()) for price in prices(selection).values())
    if selection.each is None:
        return sum(selection.keep(scores).values()), whole
    return whole - int(selection.budget.sparsity * whole), whole
