"""The regulariser of the warm-up against a literal loop, and at the edges of its divisions."""

import math

import pytest
import torch
from torch import Tensor

from hydraprune.core.threat import Box
from hydraprune.objectives.warmup import warmup_loss

IMAGES = Box(torch.full((3, 4), 0.4), torch.full((3, 4), 0.6))


def boxes(count: int, spread: float) -> list[Box]:
    lower = torch.randn(count, 3, 20, dtype=torch.float64)
    return [Box(low, low + spread * torch.rand_like(low)) for low in lower]


def literal(images: Box, entering: list[Box]) -> float:
    """The definition, number by number; where a ratio is 0 / 0 the term is left out."""
    total = 0.0
    d0 = sum((u - lo) / 2 for lo, u in zip(*flat(images), strict=True)) / images.lower.numel()
    for box in entering:
        lower, upper = flat(box)
        n = len(lower)
        d = sum((u - lo) / 2 for lo, u in zip(lower, upper, strict=True)) / n
        total += max(0.0, 0.5 - d0 / d) / 0.5
        centers = [(lo + u) / 2 for lo, u in zip(lower, upper, strict=True)]
        mean = sum(centers) / n
        active = [i for i in range(n) if lower[i] > 0]
        inactive = [i for i in range(n) if upper[i] < 0]
        ratios = []
        spreads = [(c - mean) ** 2 for c in centers]
        for parts, sign in ((centers, -1), (spreads, 1)):
            a, b = (sum(parts[i] for i in units) / n for units in (active, inactive))
            q = math.inf if b == 0 else sign * a / b
            ratios.append(math.nan if a == b == 0 else min(q, math.inf if q == 0 else 1 / q))
        if not any(math.isnan(ratio) for ratio in ratios):
            total += sum(max(0.0, 0.5 - ratio) for ratio in ratios) / 0.5
    return total / len(entering)


def flat(box: Box) -> tuple[list[float], list[float]]:
    return box.lower.flatten().tolist(), box.upper.flatten().tolist()


@pytest.mark.parametrize("shift", [0.0, -1.5, 1.0, 9.0])
@pytest.mark.parametrize("spread", [0.1, 0.5, 3.0, 40.0])
def test_it_is_the_sum_of_its_definitions(spread: float, shift: float) -> None:
    entering = [Box(box.lower + shift, box.upper + shift) for box in boxes(3, spread)]
    found = warmup_loss(IMAGES, entering)
    assert float(found) == pytest.approx(literal(IMAGES, entering), rel=1e-6, abs=1e-9)


def gradient(box: Box) -> Tensor:
    lower, upper = (end.clone().requires_grad_() for end in box)
    warmup_loss(IMAGES, [Box(lower, upper)]).backward()
    assert lower.grad is not None
    assert upper.grad is not None
    return torch.stack([lower.grad, upper.grad])


@pytest.mark.parametrize(
    ("lower", "upper"),
    [(0.0, 0.0), (-1.0, 1.0), (1.0, 1.0), (-1.0, -1.0), (0.0, 5.0), (1e-30, 1e-30)],
    ids=["dead", "all open", "all active", "all inactive", "touching zero", "tiny"],
)
def test_gradients_are_finite_where_nothing_is_to_be_compared(lower: float, upper: float) -> None:
    box = Box(torch.full((2, 5), lower), torch.full((2, 5), upper))
    assert warmup_loss(IMAGES, [box]).isfinite()
    assert gradient(box).isfinite().all()


def test_wide_boxes_are_drawn_in_and_the_rarer_kind_of_units_outward() -> None:
    wide = Box(torch.full((1, 6), -2.0), torch.full((1, 6), 2.0))
    assert (gradient(wide)[0] < 0).all()
    assert (gradient(wide)[1] > 0).all()
    lopsided = Box(torch.tensor([[-0.2, 3.0, 3.1, 3.2]]), torch.tensor([[-0.1, 3.1, 3.2, 3.3]]))
    assert gradient(lopsided)[:, 0, 0].max() > 0  # descent makes the inactive unit more negative
