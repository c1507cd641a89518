"""Ramps against the schedules that the authors' code computes, and how their numbers are written here."""

import json
from itertools import pairwise

import pytest
import torch

from hydraprune.core.errors import SpecError
from hydraprune.core.objective import Clock, Context
from hydraprune.core.threat import ThreatModel
from hydraprune.objectives.mixtrain import MixTrain
from hydraprune.objectives.schedule import Ramp, follow
from objectives.small import BATCH, small

SHAPES = {"linear": "linear", "smoothed": "smooth"}


@pytest.fixture
def schedules(golden):
    return json.loads((golden / "bounds" / "schedules.json").read_text())


@pytest.mark.parametrize("number", range(3))
def test_radius_beta_and_kappa_of_crown_ibp(schedules, number):
    given = schedules["crown_ibp"][number]
    steps = given["steps_per_epoch"]
    ramp = Ramp(
        start=given["init_step"] / steps,
        length=(given["final_step"] - given["init_step"]) / steps,
        shape=SHAPES[given["kind"]],
    )
    for point in given["points"]:
        clock = Clock(point["epoch"] * steps + point["step"], steps, 2000)
        share = ramp.share(clock.epoch)
        assert share * given["final_value"] == pytest.approx(point["eps"], rel=1e-12, abs=0)
        assert follow(share, given["final_beta"]) == pytest.approx(point["beta"], abs=1e-15)
        assert follow(share, given["final_kappa"]) == pytest.approx(point["kappa"], abs=1e-15)


@pytest.mark.parametrize("number", range(3))
def test_radius_and_weight_of_mixtrain(schedules, number):
    given = schedules["mixtrain"][number]
    ramp = Ramp(length=given["schedule_length"], initial=given["starting_epsilon"] / given["epsilon"])
    objective, net = MixTrain(ramp=ramp, weight=given["interval_weight"], probability=0), small()
    for point in given["points"]:
        for step in (0, 1, 6):  # the same throughout an epoch
            clock = Clock(point["epoch"] * 7 + step, 7, 60)
            ctx = Context(ThreatModel(eps=given["epsilon"]), torch.Generator(), clock)
            assert objective(net, BATCH, ctx).metrics["eps"] == pytest.approx(point["eps"], rel=1e-6)
            assert objective.weight_at(clock) == pytest.approx(point["interval_weight"], rel=1e-12)


def full_from(ramp):
    """The first epoch with the whole radius."""
    return next(epoch for epoch in range(2000) if ramp.share(epoch) == 1)


@pytest.mark.parametrize(
    ("start", "length", "counted_from", "ours"),
    [
        (0, 120, 0, Ramp(length=119)),  # HYDRA, pre-training
        (0, 1, 0, Ramp()),  # HYDRA, pruning and fine-tuning
        (10, 121, 0, Ramp(start=10, length=120)),  # CROWN-IBP, small networks
        (320, 1601, 0, Ramp(start=320, length=1600)),  # CROWN-IBP, dm-large
        (2, 80, 1, Ramp(start=1, length=80)),  # arXiv:2103.17268
    ],
)
def test_what_the_authors_call_a_length(start, length, counted_from, ours):
    """Both codes end the ramp at epoch `start + length - 1`; the first starts it at `start`, the second before."""
    first, last = start - counted_from, start + length - 1
    assert full_from(ours) == last
    assert all(ours.share(epoch) == 0 for epoch in range(first + 1)) or last == first
    assert last == first or 0 < ours.share(first + 1 / 391) < 0.01
    assert ours.length == last - first


def test_without_a_length_eps_is_full_at_once_whatever_the_start():
    ramp = Ramp(start=10, length=0, shape="smooth")
    assert [ramp.share(epoch) for epoch in (0.0, 5.0, 10.0, 11.0)] == [1.0] * 4
    assert ramp.end == 0


@pytest.mark.parametrize("shape", ["linear", "smooth"])
def test_a_ramp_never_falls_and_has_no_corner_or_jump_but_at_its_ends(shape):
    ramp = Ramp(start=2, length=8, shape=shape, initial=0.2)
    shares = [ramp.share(2 + 8 * i / 4000) for i in range(4001)]
    slopes = [(b - a) * 4000 / 0.8 for a, b in pairwise(shares)]
    assert shares[0] == pytest.approx(0.2)
    assert shares[-1] == 1
    assert ramp.share(0) == pytest.approx(0.2)
    assert all(0 <= slope <= 1.25 for slope in slopes)
    assert max(abs(b - a) for a, b in pairwise(slopes)) < 0.01
    assert max(slopes) == pytest.approx(1 if shape == "linear" else 16 / 13, rel=1e-3)


@pytest.mark.parametrize(("middle", "power"), [(0.25, 4), (0.5, 2), (0.1, 1), (1, 3), ("1/3", 2.5)])
def test_a_smooth_ramp_is_a_power_and_then_its_tangent(middle, power):
    """Of any middle and power: the line touches the power where it leaves it, and ends at 1."""
    ramp = Ramp(length=1, shape="smooth", middle=middle, power=power)
    at, h = ramp.middle, 1e-6
    scale = ramp.share(at / 2) / (at / 2) ** power
    assert ramp.share(at / 4) == pytest.approx(scale * (at / 4) ** power)
    assert ramp.share(1 - h) == pytest.approx(1, abs=1e-5)
    tangent = scale * power * at ** (power - 1)
    for time in (at, (1 + at) / 2):
        assert time == 1 or ramp.share(time) == pytest.approx(scale * at**power + tangent * (time - at))


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"middle": 0}, "middle"),
        ({"power": 0.5}, "power"),
        ({"start": -1}, "start"),
        ({"length": -1}, "length"),
        ({"shape": "cosine"}, "shape"),
        ({"initial": 2}, "initial"),
    ],
)
def test_settings_without_sense_are_refused(settings, path):
    with pytest.raises(SpecError, match=rf"^ramp\.{path}: "):
        Ramp.parse(settings, "ramp")
