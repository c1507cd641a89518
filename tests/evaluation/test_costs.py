"""Costs of pruning, counted by hand and by a plain loop."""

import pytest
import torch

from hydraprune.evaluation.costs import calibration_error, flips, per_class

LABEL = torch.tensor([0, 0, 1, 1, 1, 3])


def test_each_class_has_its_own_accuracy():
    right = torch.tensor([True, False, True, True, True, False])
    shares = per_class(LABEL, right, 5)
    assert shares[[0, 1, 3]].tolist() == [0.5, 1.0, 0.0]
    assert shares[[2, 4]].isnan().all()
    assert per_class(LABEL, right[:3], 2).tolist() == [0.5, 1.0]


def test_answers_that_change():
    before, after = torch.tensor([0, 1, 1, 1, 2, 2]), torch.tensor([0, 0, 1, 2, 0, 2])
    found = flips(LABEL, before, after)
    assert found["changed"].tolist() == [False, True, False, True, True, False]
    assert found["lost"].tolist() == [False, False, False, True, False, False]
    assert found["won"].tolist() == [False, True, False, False, False, False]


def test_the_calibration_error_is_that_of_a_plain_loop():
    confidence = torch.cat([torch.rand(500), torch.tensor([0.0, 1.0, 1 / 15, 2 / 15])])
    right = torch.rand(504) < confidence**2
    expected = 0.0
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        inside = (confidence.double() > low) & (confidence.double() <= high)
        if number == 0:
            inside |= confidence == 0
        if inside.any():
            expected += abs((confidence[inside].double() - right[inside].double()).sum().item()) / 504
    assert calibration_error(confidence, right) == pytest.approx(expected, abs=1e-6)


def test_perfect_and_worst_calibration():
    sure = torch.ones(8)
    assert calibration_error(sure, sure.bool()) == 0
    assert calibration_error(sure, ~sure.bool()) == 1
