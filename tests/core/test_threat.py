"""Ball and pixel range against loops over single pixels."""

import math

import pytest
import torch

from hydraprune.core.errors import SpecError
from hydraprune.core.threat import ThreatModel

SHAPES = [(4, 1, 3, 3), (3, 3, 5, 4), (5, 7), (1, 2, 2, 2, 2)]
norms = pytest.mark.parametrize("norm", ["linf", "l2"])
shapes = pytest.mark.parametrize("shape", SHAPES)


def length(values: list[float], norm: str) -> float:
    return max(map(abs, values)) if norm == "linf" else math.sqrt(sum(v * v for v in values))


def slow_shrink(delta: list[float], norm: str, eps: float) -> list[float]:
    if norm == "linf":
        return [min(max(v, -eps), eps) for v in delta]
    size = length(delta, norm)
    return [v * eps / size for v in delta] if size > eps else delta


@norms
@shapes
@pytest.mark.parametrize("eps", [0.0, 0.03, 0.4])
def test_shrink_and_project_equal_the_loop(norm, shape, eps):
    threat, x = ThreatModel(norm=norm, eps=eps), torch.rand(shape)
    far = x + torch.randn(shape) * torch.tensor([0.001, 1.0, 0.1, 3.0, 0.02][: len(x)]).view(-1, *[1] * (x.dim() - 1))
    shrunk, found = threat.shrink(far - x), threat.project(x, far.requires_grad_())
    assert not found.requires_grad
    for row, start, end, inner in zip(found, x, far.detach(), shrunk, strict=True):
        pixels, delta = start.flatten().tolist(), (end - start).flatten().tolist()
        slow = slow_shrink(delta, norm, eps)
        torch.testing.assert_close(inner.flatten(), torch.tensor(slow))
        clipped = [min(max(p + d, 0.0), 1.0) for p, d in zip(pixels, slow, strict=True)]
        torch.testing.assert_close(row.flatten(), torch.tensor(clipped))
        moved = [a - b for a, b in zip(row.flatten().tolist(), pixels, strict=True)]
        assert length(moved, norm) <= eps * (1 + 1e-5) + 1e-6
    torch.testing.assert_close(threat.project(x, found), found)


@norms
@shapes
def test_distance_equals_the_loop(norm, shape):
    x, other = torch.rand(shape), torch.rand(shape)
    slow = [length((a - b).flatten().tolist(), norm) for a, b in zip(x, other, strict=True)]
    torch.testing.assert_close(ThreatModel(norm=norm, eps=0.1).distance(x, other), torch.tensor(slow))


@norms
@shapes
def test_no_unit_direction_climbs_a_linear_function_faster(norm, shape):
    gradient = torch.randn(shape)
    best = ThreatModel(norm=norm, eps=0.1).steepest(gradient)
    dual = [length(g.flatten().tolist(), "l2") if norm == "l2" else float(g.abs().sum()) for g in gradient]
    for row, direction, most in zip(gradient, best, dual, strict=True):
        assert length(direction.flatten().tolist(), norm) == pytest.approx(1, rel=1e-5)
        assert float((row * direction).sum()) == pytest.approx(most, rel=1e-5)


@norms
def test_without_gradient_there_is_no_direction(norm):
    assert not ThreatModel(norm=norm, eps=0.1).steepest(torch.zeros(2, 3, 4, 4)).any()


@norms
@shapes
def test_samples_lie_in_ball_and_range_and_follow_their_generator_alone(norm, shape):
    threat, x = ThreatModel(norm=norm, eps=0.6), torch.rand(shape)
    state = torch.get_rng_state()
    first = threat.sample(x, torch.Generator().manual_seed(1))
    assert torch.equal(first, threat.sample(x, torch.Generator().manual_seed(1)))
    assert not torch.equal(first, threat.sample(x, torch.Generator().manual_seed(2)))
    assert torch.equal(state, torch.get_rng_state())
    assert first.shape == x.shape
    assert (first >= 0).all()
    assert (first <= 1).all()
    assert (threat.distance(x, first) <= 0.6 * (1 + 1e-5)).all()


@pytest.mark.parametrize("pixels", [1, 2, 5])
@norms
def test_samples_are_uniform_in_the_ball(norm, pixels):
    """The share of a ball's volume within a share r of its radius is r to the power of its dimension."""
    x, eps = torch.full((20000, pixels), 0.5), 0.4
    threat = ThreatModel(norm=norm, eps=eps)
    sample = threat.sample(x, torch.Generator().manual_seed(0))
    radius = threat.distance(x, sample) / eps
    for r in (0.3, 0.5, 0.8, 0.95):
        assert float((radius < r).float().mean()) == pytest.approx(r**pixels, abs=0.015)
    torch.testing.assert_close((sample - x).mean(0), torch.zeros(pixels), rtol=0, atol=0.01)


def test_the_box_is_the_linf_ball_within_the_range():
    x = torch.tensor([[[[0.0, 0.05], [0.5, 0.98]]]])
    box = ThreatModel(eps=0.1).box(x)
    torch.testing.assert_close(box.lower, torch.tensor([[[[0.0, 0.0], [0.4, 0.88]]]]))
    torch.testing.assert_close(box.upper, torch.tensor([[[[0.1, 0.15], [0.6, 1.0]]]]))


@norms
def test_every_sample_lies_in_the_box(norm):
    threat, x = ThreatModel(norm=norm, eps=0.3), torch.rand(50, 4)
    lower, upper = threat.box(x)
    sample = threat.sample(x, torch.Generator())
    assert ((sample >= lower - 1e-6) & (sample <= upper + 1e-6)).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": 8}, "eps 8 is above 1; pixels lie in [0, 1], so write 8/255"),
        ({"eps": 1.01}, "above 1"),
        ({"eps": -0.1}, "ThreatModel.eps: Input should be greater than or equal to 0"),
        ({"norm": "l1", "eps": 1}, "ThreatModel.norm"),
        ({}, "ThreatModel.eps: Field required"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(SpecError) as caught:
        ThreatModel(**settings)
    assert message in str(caught.value)


def test_l2_balls_may_be_large_and_eps_a_fraction():
    assert ThreatModel(norm="l2", eps=3).eps == 3
    assert ThreatModel(eps="8/255").eps == 8 / 255
    assert ThreatModel(eps=1).norm == "linf"
