"""How many groups each layer keeps."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from hydraprune.core.errors import PruningError
from hydraprune.core.lazy import lazy
from hydraprune.core.spec import Number, Spec
from hydraprune.masks import BUDGETS
from hydraprune.masks.macs import macs_per_weight
from hydraprune.masks.names import fits, known
from hydraprune.masks.topk import affordable, ascending, top_mask
from hydraprune.masks.view import MaskView

Sparsity = Annotated[Number, Field(ge=0, lt=1)]
Shapes = Mapping[str, tuple[int, ...]]
Pooled = Mapping[str, Tensor]
"""Layer -> a number for each group."""


class Budget(Spec, ABC):
    """Shares the kept groups out among the layers.

    Args:
        sparsity: fraction removed, in [0, 1).
        floor: groups that a layer keeps at the least, if it has as many; 0 lets layers die.

    Attributes:
        counts: what `sparsity` is a fraction of, in a word.
    """

    kind: str
    sparsity: Sparsity
    floor: int = Field(default=1, ge=0)
    counts: ClassVar[str] = "groups"

    def costs(self, view: MaskView, images: Callable[[], Tensor]) -> Mapping[str, float] | None:
        """Layer -> what each of its weights has of what the budget counts; None counts groups, whatever their size.

        Args:
            view: the prunable weights.
            images: gives some (B, C, H, W), or a PruningError where there are none.
        """
        return None

    @abstractmethod
    def allocate(self, importance: Pooled, shapes: Shapes, costs: Pooled | None = None) -> dict[str, int]:
        """Groups kept per layer.

        Args:
            importance: layer -> pooled scores (groups,).
            shapes: layer -> shape of its weight tensor.
            costs: layer -> (groups,) what each group has of what the budget `counts`; None counts groups.

        Raises:
            PruningError: if the floor asks for more than the sparsity leaves.
        """

    def _floors(self, importance: Pooled) -> dict[str, int]:
        return {name: min(self.floor, len(pooled)) for name, pooled in importance.items()}

    def _beyond(self, left: int, least: int) -> PruningError:
        return PruningError(
            f"sparsity {self.sparsity:g} leaves {left} {self.counts}, but floor {self.floor} keeps {least}; "
            "lower the sparsity, or the budget's floor"
        )


def _kept(sparsity: float, groups: int) -> int:
    # The authors' rounding: the removed count is truncated.
    return groups - int(sparsity * groups)


class Uniform(Budget):
    """The same sparsity in every layer: `n - int(sparsity * n)` of n groups stay (arXiv:2002.10509, authors' code)."""

    kind: Literal["uniform"] = "uniform"

    def allocate(self, importance: Pooled, shapes: Shapes, costs: Pooled | None = None) -> dict[str, int]:
        return {
            name: max(least, _kept(self.sparsity, len(importance[name])))
            for name, least in self._floors(importance).items()
        }


class Table(Budget):
    """A sparsity for each layer.

    Args:
        layers: name of a layer, or a pattern such as `layer4.*` -> its sparsity; the first that fits decides. All
            other layers have the budget's `sparsity`.
    """

    kind: Literal["table"] = "table"
    layers: dict[str, Sparsity] = {}

    def allocate(self, importance: Pooled, shapes: Shapes, costs: Pooled | None = None) -> dict[str, int]:
        known(self.layers, importance)
        kept = {}
        for name, least in self._floors(importance).items():
            sparsity = next((s for pattern, s in self.layers.items() if fits(name, pattern)), self.sparsity)
            kept[name] = max(least, _kept(sparsity, len(importance[name])))
        return kept


class Threshold(Budget, ABC):
    """One threshold over all layers: the best groups stay, wherever they are."""

    def _comparable(self, pooled: Tensor) -> Tensor:
        """A layer's importance as it is compared with that of other layers, which keeps its order or is sorted."""
        return pooled

    def allocate(self, importance: Pooled, shapes: Shapes, costs: Pooled | None = None) -> dict[str, int]:
        floors = self._floors(importance)
        # What the floor protects goes first.
        comparable = {name: self._comparable(pooled) for name, pooled in importance.items()}
        every = torch.cat(
            [layer.masked_fill(top_mask(layer, floors[name])[0], math.inf) for name, layer in comparable.items()]
        )
        if costs is None:
            total = _kept(self.sparsity, len(every))
            if total < sum(floors.values()):
                raise self._beyond(total, sum(floors.values()))
            mask, _ = top_mask(every, total)
        else:
            cost = torch.cat([costs[name].to(every.device) for name in importance])
            total = _kept(self.sparsity, int(cost.sum()))
            mask = affordable(every, cost, total)
            if not mask[every.isinf()].all():
                raise self._beyond(total, int(cost[every.isinf()].sum()))
        parts = mask.split([len(pooled) for pooled in importance.values()])
        return {name: int(part.sum()) for name, part in zip(importance, parts, strict=True)}


class Global(Threshold):
    """One threshold over all layers.

    Args:
        normalize: divide each layer's importance by its Euclidean norm first, so that layers of different scale
            can be compared.
    """

    kind: Literal["global"] = "global"
    normalize: bool = False

    def _comparable(self, pooled: Tensor) -> Tensor:
        return pooled / torch.linalg.vector_norm(pooled).clamp_min(1e-8) if self.normalize else pooled


class LAMP(Threshold):
    """One threshold over layer-adaptive importance: s^2 / (sum of s^2 over all that matter at least as much).

    The best group of every layer has importance 1 (arXiv:2010.07611, equation 4).
    """

    kind: Literal["lamp"] = "lamp"

    def _comparable(self, pooled: Tensor) -> Tensor:
        squares = ascending(pooled).double().square()
        rest = squares.flip(0).cumsum(0).flip(0).clamp_min(torch.finfo(torch.float64).tiny)
        return squares / rest


class Parameters(Threshold):
    """One threshold over all layers, where `sparsity` is the fraction of weights removed, however large groups are."""

    kind: Literal["parameters"] = "parameters"
    counts: ClassVar[str] = "weights"

    def costs(self, view: MaskView, images: Callable[[], Tensor]) -> Mapping[str, float]:
        return dict.fromkeys(view.modules, 1)


class FLOPs(Threshold):
    """One threshold over all layers, where `sparsity` is the fraction of multiply-accumulate operations removed.

    Each weight that stays costs one of them at every position where its layer applies it; that a removed filter also
    spares the next layer its input is not counted.
    """

    kind: Literal["flops"] = "flops"
    counts: ClassVar[str] = "macs"

    def costs(self, view: MaskView, images: Callable[[], Tensor]) -> Mapping[str, float]:
        return macs_per_weight(view, images())


class Balanced(Budget, ABC):
    """Densities by shape alone, with one scale for all layers, solved so that the total is exact."""

    @abstractmethod
    def density(self, shape: tuple[int, ...], scale: float) -> float:
        """The share of a layer that is kept, which grows with `scale` > 0; above 1 the layer is kept whole."""

    def allocate(self, importance: Pooled, shapes: Shapes, costs: Pooled | None = None) -> dict[str, int]:
        groups, floors = {name: len(pooled) for name, pooled in importance.items()}, self._floors(importance)
        total = _kept(self.sparsity, sum(groups.values()))
        if total < sum(floors.values()):
            raise self._beyond(total, sum(floors.values()))

        def shares(scale: float) -> dict[str, float]:
            densities = {name: min(1.0, self.density(shapes[name], scale)) for name in groups}
            return {name: max(floors[name], densities[name] * size) for name, size in groups.items()}

        low, high = 1e-30, 1e30
        for _ in range(200):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if sum(shares(middle).values()) <= total else (low, middle)
        return _rounded(shares(low), groups, total)


class ERK(Balanced):
    """Erdos-Renyi-kernel: density in proportion to sum(shape) / prod(shape) (arXiv:1911.11134, section 3).

    Layers whose density would exceed 1 are kept whole and the others share what is left.
    """

    kind: Literal["erk"] = "erk"

    def density(self, shape: tuple[int, ...], scale: float) -> float:
        return scale * sum(shape) / math.prod(shape)


class IGQ(Balanced):
    """Ideal gas quotas: density 1 / (1 + f * weights of the layer), one f for all (arXiv:2107.02306, section 4)."""

    kind: Literal["igq"] = "igq"

    def density(self, shape: tuple[int, ...], scale: float) -> float:
        return scale / (scale + math.prod(shape))


def _rounded(exact: Mapping[str, float], limit: Mapping[str, int], total: int) -> dict[str, int]:
    """Whole numbers next to `exact` that add up to `total`: the largest remainders are rounded up."""
    kept = {name: min(limit[name], int(value)) for name, value in exact.items()}
    by_remainder = sorted(kept, key=lambda name: exact[name] - kept[name], reverse=True)
    for name in by_remainder[: total - sum(kept.values())]:
        kept[name] += 1
    return kept


# Those of other packages.
__getattr__, __dir__ = lazy(__name__, BUDGETS.classes)
