"""Means over runs, and how sure they are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from hydraprune.report.matrix import percent


@dataclass(frozen=True)
class Spread:
    """Several values of one quantity.

    Attributes:
        mean: of `values`.
        std: their sample standard deviation; None for a single one.
        values: one of each run.
    """

    mean: float
    std: float | None
    values: list[float]

    @classmethod
    def of(cls, values: Sequence[float], *more: int) -> Self:
        """Of `values`, at least one, and what else a kind of spread has."""
        std = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.mean(values), std, [*values], *more)

    @property
    def percent(self) -> str:
        """Shares as percentages: `61.0 ± 1.0`."""
        return percent(self.mean, self.std)


@dataclass(frozen=True)
class Accuracy(Spread):
    """A share of images, in [0, 1].

    Attributes:
        samples: on how many images it was measured in each run.
    """

    samples: int

    @property
    def ends(self) -> tuple[float, float]:
        """Of its bar: one standard deviation over runs; of a single one, what the number of images allows."""
        if self.std is None:
            return interval(self.mean, self.samples)
        return max(self.mean - self.std, 0.0), min(self.mean + self.std, 1.0)

    @property
    def words(self) -> str:
        """How sure it is."""
        if self.std is not None:
            return f"seeds {', '.join(map(percent, self.values))}; {self.samples:,} images"
        low, high = self.ends
        return f"95 % interval {percent(low)} to {percent(high)}, {self.samples:,} images"


def interval(share: float, samples: int) -> tuple[float, float]:
    """95 % score interval of a share that was measured on `samples` images (Wilson, 1927)."""
    z = 1.96
    middle = (share + z**2 / (2 * samples)) / (1 + z**2 / samples)
    half = z / (1 + z**2 / samples) * math.sqrt(share * (1 - share) / samples + z**2 / (4 * samples**2))
    return max(0.0, middle - half), min(1.0, middle + half)
