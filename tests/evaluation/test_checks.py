"""Defences that are broken on purpose are caught, and an honest network passes."""

import pytest
import torch
from torch import nn

from attacks.trained import digits
from hydraprune.core.errors import EvaluationError
from hydraprune.core.objective import Batch
from hydraprune.core.threat import ThreatModel
from hydraprune.evaluation import Evaluation, checks

THREAT = ThreatModel(eps=0.1)


class Quantised(nn.Module):
    """Shades of grey: no gradient passes."""

    def forward(self, x):
        return torch.round(4 * x) / 4


class Hot(nn.Module):
    """Logits so large that the softmax is exactly 0 or 1."""

    def forward(self, logits):
        return 1e4 * logits


class Noise(nn.Module):
    def forward(self, x):
        return x + 0.1 * torch.randn_like(x)


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(checks, "QUERIES", 200)
    monkeypatch.setattr(checks, "STEPS", (3, 10, 20))
    monkeypatch.setattr(checks, "RESTARTS", (1, 2))
    monkeypatch.setattr(checks, "SURFACE", 9)


def results(*layers, count=60, **more):
    _, (x, y) = digits()
    found = checks.check(nn.Sequential(*layers), Batch(x[:count], y[:count]), THREAT, seed=0, **more)
    return {one.name: one for one in found}


def test_an_honest_network_passes():
    found = results(digits()[0])
    assert {name: one.passed for name, one in found.items()} == {
        "deterministic": True, "gradients": True, "radius": True, "black-box": True, "steps": True, "restarts": True,
        "loss-surface": True, "order": None,
    }  # fmt: skip
    radius = found["radius"].figures
    assert radius["eps"][0] == 0
    assert radius["eps"][-1] == 0.5
    assert radius["accuracy"] == sorted(radius["accuracy"], reverse=True)
    grid = found["loss-surface"].figures
    assert len(grid["loss"]) == len(grid["y"]) == 9
    assert {len(row) for row in grid["loss"]} == {len(grid["x"])}
    _, (x, y) = digits()
    right = digits()[0](x[:60]).argmax(1) == y[:60]
    loss = nn.functional.cross_entropy(digits()[0](x[:60][right][:16]), y[:60][right][:16])
    assert grid["loss"][4][4] == pytest.approx(loss.item(), rel=1e-4)
    for one in found.values():
        assert all(text and text[-1] != "." for text in (one.found, one.expected, one.why))


@pytest.mark.parametrize("broken", ["quantised", "hot"])
def test_masked_gradients_are_caught(broken):
    net = digits()[0]
    found = results(Quantised(), net) if broken == "quantised" else results(net, Hot())
    assert not any(found[name].passed for name in ("gradients", "radius", "black-box", "loss-surface"))
    assert found["gradients"].figures["zero"] == 1
    assert found["black-box"].figures["black_box"] < found["black-box"].figures["white_box"] - 0.05


def test_random_numbers_are_caught():
    assert results(Noise(), digits()[0], count=20)["deterministic"].passed is False


def verdicts(**survived):
    count = len(next(iter(survived.values())))
    label = torch.zeros(count, dtype=torch.int64)
    flags = {name.replace("_", "-"): torch.tensor(value).bool() for name, value in survived.items()}
    return Evaluation(label, label, torch.ones(count), flags)


@pytest.mark.parametrize(
    ("pgd", "autoattack", "verified", "passed"),
    [
        ([1, 1, 1, 0], [1, 1, 0, 0], [1, 0], True),
        ([1, 1, 0, 0], [1, 1, 1, 0], [1, 0], False),
        ([1, 0, 1, 0], [1, 0, 0, 0], [0, 1], False),  # a proof that an attack refutes
        ([1, 1, 1, 0], [1, 1, 0, 0], None, True),
    ],
)
def test_stronger_adversaries_break_more(pgd, autoattack, verified, passed):
    proofs = None if verified is None else torch.tensor(verified).bool()
    found = checks._order(verdicts(pgd_5x1=pgd, autoattack=autoattack), proofs)
    assert found.passed is passed
    assert list(found.figures)[:3] == ["clean", "pgd", "autoattack"]


def test_without_a_correct_image_there_is_nothing_to_check():
    net, (x, _) = digits()
    with pytest.raises(EvaluationError, match="no image is classified correctly"):
        checks.check(net, Batch(x[:4], (net(x[:4]).argmax(1) + 1) % 10), THREAT, seed=0)
