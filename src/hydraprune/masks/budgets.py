"""How many groups each layer keeps."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from hydraprune.core.spec import Number, Spec
from hydraprune.masks.topk import top_mask


class Budget(Spec, ABC):
    """Shares the kept groups out among the layers.

    Args:
        sparsity: fraction removed, in [0, 1).
    """

    kind: str
    sparsity: Number = Field(ge=0, lt=1)

    @abstractmethod
    def allocate(self, importance: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """Groups kept per layer, from the pooled scores (groups,) and the shapes of the weight tensors."""


def _kept(sparsity: float, groups: int) -> int:
    # The authors' rounding: the removed count is truncated.
    return groups - int(sparsity * groups)


class Uniform(Budget):
    """The same sparsity in every layer: `n - int(sparsity * n)` of n groups stay (arXiv:2002.10509, authors' code)."""

    kind: Literal["uniform"] = "uniform"

    def allocate(self, importance: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        return {name: _kept(self.sparsity, len(pooled)) for name, pooled in importance.items()}


class Global(Budget):
    """One threshold over all layers.

    Args:
        normalize: divide each layer's importance by its Euclidean norm first, so that layers of different scale
            can be compared.
    """

    kind: Literal["global"] = "global"
    normalize: bool = False

    def allocate(self, importance: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        pooled = [p / torch.linalg.vector_norm(p).clamp_min(1e-8) if self.normalize else p for p in importance.values()]
        every = torch.cat(pooled)
        mask, _ = top_mask(every, _kept(self.sparsity, len(every)))
        parts = mask.split([len(p) for p in pooled])
        return {name: int(part.sum()) for name, part in zip(importance, parts, strict=True)}


class ERK(Budget):
    """Erdos-Renyi-kernel: density in proportion to sum(shape) / prod(shape) (arXiv:1911.11134, section 3).

    Layers whose density would exceed 1 are kept whole and the rest is solved again. The total is exact.
    """

    kind: Literal["erk"] = "erk"

    def allocate(self, importance: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        groups = {name: len(pooled) for name, pooled in importance.items()}
        raw = {name: sum(shape) / math.prod(shape) for name, shape in shapes.items()}
        target = _kept(self.sparsity, sum(groups.values()))
        whole: set[str] = set()
        while True:
            rest = [name for name in groups if name not in whole]
            budget = target - sum(groups[name] for name in whole)
            scale = budget / sum(raw[name] * groups[name] for name in rest) if rest else 0.0
            over = [name for name in rest if scale * raw[name] > 1]
            if not over:
                break
            whole.add(max(over, key=raw.__getitem__))
        exact = {name: float(groups[name]) if name in whole else scale * raw[name] * groups[name] for name in groups}
        return _rounded(exact, groups, target)


def _rounded(exact: Mapping[str, float], limit: Mapping[str, int], total: int) -> dict[str, int]:
    """Whole numbers next to `exact` that add up to `total`: the largest remainders are rounded up."""
    kept = {name: min(limit[name], int(value)) for name, value in exact.items()}
    by_remainder = sorted(kept, key=lambda name: exact[name] - kept[name], reverse=True)
    for name in by_remainder[: total - sum(kept.values())]:
        kept[name] += 1
    return kept
