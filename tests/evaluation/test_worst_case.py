"""Robust accuracy: the attack proposes, the evaluator projects and judges, and the model is left as it was."""

from typing import Literal

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from attacks.trained import THREAT, digits
from hydraprune.attacks.autoattack import AutoAttack
from hydraprune.attacks.fgsm import FGSM
from hydraprune.attacks.pgd import PGD
from hydraprune.core.attack import Attack
from hydraprune.core.errors import DataError, EvaluationError, SpecError
from hydraprune.core.objective import Batch
from hydraprune.core.seeds import generator
from hydraprune.core.threat import ThreatModel
from hydraprune.evaluation import clean_accuracy, evaluate

SHORT = PGD(steps=5, restarts=2)


class Fixed(Attack):
    """Returns what it is told to: a stand-in for an attack by somebody else."""

    kind: Literal["fixed"] = "fixed"
    act: object
    called: str = "fixed"

    @property
    def name(self) -> str:
        return self.called

    def search(self, model, x, y, threat, rng):
        return self.act(model, x, y)


def brightness() -> nn.Module:
    """Class 1 where the mean pixel is above a half; at 1.0 or below 0.0 it would be a third class."""
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    net[2].weight.data = torch.tensor([[-1.0], [1.0]])
    net[2].bias.data = torch.tensor([0.5, -0.5])
    return net


def flat(*levels: float) -> torch.Tensor:
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()


def halves(batch: Batch, size: int) -> list[Batch]:
    return [Batch(x, y) for x, y in zip(batch.x.split(size), batch.y.split(size), strict=True)]


def test_accuracies_are_ordered_and_counted_by_hand():
    net, batch = digits()
    batch = Batch(batch.x[:16], batch.y[:16])
    threat = ThreatModel(eps=0.15)
    result = evaluate(net, [batch], threat=threat, attacks=[FGSM(), PGD(), AutoAttack()], seed=0)
    with torch.no_grad():
        assert torch.equal(result.correct, net(batch.x).argmax(1) == batch.y)
    accuracy = result.robust_accuracy
    assert 0 < accuracy["autoattack"] <= accuracy["pgd-50x10"] <= accuracy["fgsm"] <= result.clean_accuracy < 1
    assert accuracy["pgd-50x10"] < result.clean_accuracy
    union = result.survived["fgsm"] & result.survived["pgd-50x10"] & result.survived["autoattack"]
    assert torch.equal(result.worst_case, union)

    record = result.record(stage="finetune", pruner="hydra", kept=10, total=100, seed=0)
    assert record.sparsity == pytest.approx(0.9)
    assert record.clean_accuracy == result.correct.double().mean()
    assert record.robust_accuracy == {**accuracy, "worst-case": union.double().mean()}
    assert (record.samples, record.robust_samples, record.threat) == (16, {}, threat)


def test_verdicts_are_those_of_the_network_itself():
    """The folded copy and its memory format change no verdict; a repeat is equal, another seed need not be."""
    net, batch = digits()
    once = evaluate(net, halves(batch, 100), threat=THREAT, attacks=[SHORT], seed=1)
    again = evaluate(net, iter(halves(batch, 100)), threat=THREAT, attacks=[FGSM(), SHORT], seed=1)
    assert once.clean_accuracy == clean_accuracy(net, [batch])
    assert torch.equal(once.survived["pgd-5x2"], again.survived["pgd-5x2"])
    assert len(once.correct) == 256

    survivors = []
    for number, (x, y) in enumerate(halves(batch, 100)):
        rng = generator(1, "evaluation", number)
        right = net(x).argmax(1) == y
        found = SHORT.search(net, x[right], y[right], THREAT, rng)
        right[right.clone()] = net(found).argmax(1) == y[right]
        survivors.append(right)
    assert torch.equal(once.survived["pgd-5x2"], torch.cat(survivors))


def test_no_batch_of_one_seed_has_the_random_numbers_of_another():
    """Neither those that an attack is given nor torch's own, that a network or a library may draw from."""
    drawn = []

    class Noting(Fixed):
        def search(self, model, x, y, threat, rng):
            drawn.extend((torch.rand(3, generator=rng).tolist(), torch.rand(3).tolist()))
            return x

    for seed in range(3):
        batches = [Batch(flat(0.9), torch.tensor([1]))] * 3
        evaluate(brightness(), batches, threat=THREAT, attacks=[Noting(act=None)], seed=seed)
    assert len({tuple(numbers) for numbers in drawn}) == 9


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_eps_zero_gives_clean_accuracy(norm):
    net, batch = digits()
    result = evaluate(net, [batch], threat=ThreatModel(norm=norm, eps=0), attacks=[FGSM(), SHORT], seed=0)
    assert torch.equal(result.worst_case, result.correct)


def test_the_evaluator_projects_and_judges():
    threat, x, y = ThreatModel(eps=0.1), flat(0.55, 0.7, 0.2), torch.tensor([1, 1, 1])

    def cheat(model, x, y):
        assert torch.equal(x, flat(0.55, 0.7))  # the third is wrong already
        x.fill_(0.5)  # must not move the centre of the ball
        return torch.full(x.shape, -7.0, dtype=torch.float64)

    result = evaluate(brightness(), [Batch(x, y)], threat=threat, attacks=[Fixed(act=cheat)], seed=0)
    assert result.survived["fixed"].tolist() == [False, True, False]
    assert result.robust_accuracy["fixed"] == pytest.approx(1 / 3)


def test_an_expensive_attack_may_see_the_first_images_only():
    batch = Batch(flat(0.9, 0.55, 0.9, 0.55, 0.9, 0.9), torch.ones(6, dtype=torch.int64))
    seen = []

    def note(model, x, y):
        seen.append(len(x))
        return x - 1

    steps = []
    attacks = [Fixed(act=note, called="dear"), Fixed(act=lambda model, x, y: x, called="vain")]
    result = evaluate(
        brightness(), halves(batch, 2), threat=ThreatModel(eps=0.1), attacks=attacks, seed=0,
        attack_samples={"dear": 3}, progress=lambda *step: steps.append(step),
    )  # fmt: skip
    assert seen == [2, 1]
    assert result.survived["dear"].tolist() == [True, False, True]
    assert result.worst_case.tolist() == [True, False, True]
    record = result.record(stage="s", pruner=None, kept=5, total=5, seed=0)
    assert record.robust_accuracy == {"dear": pytest.approx(2 / 3), "vain": 1.0, "worst-case": pytest.approx(2 / 3)}
    assert record.robust_samples == {"dear": 3, "worst-case": 3}
    assert steps == [(what, number, 3) for number in (1, 2, 3) for what in ("clean", "dear", "vain")]


def test_clean_accuracy_needs_no_threat():
    result = evaluate(brightness(), [Batch(flat(0.9, 0.1), torch.tensor([1, 1]))], seed=0)
    assert result.clean_accuracy == 0.5
    assert result.worst_case.tolist() == [True, False]
    assert result.record(stage="s", pruner=None, kept=1, total=1, seed=0).robust_accuracy == {}


class Scores(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.score = nn.Parameter(torch.rand_like(weight))

    def forward(self, weight):
        return weight * (self.score > 0.5)


def test_the_model_keeps_modes_gradients_buffers_and_random_numbers():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.9), nn.Flatten(), nn.Linear(144, 3)).train()
    parametrize.register_parametrization(net[0], "weight", Scores(net[0].weight))
    x = torch.rand(8, 1, 8, 8)
    net(x).sum().backward()
    net[1].eval()
    y = net.eval()(x).argmax(1)
    net.train()
    net[1].eval()
    modes = [module.training for module in net.modules()]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    gradients = {name: p.grad if p.grad is None else p.grad.clone() for name, p in net.named_parameters()}
    noise = torch.get_rng_state()
    kinds = []

    def look(model, x, y):
        kinds.extend([parametrize.is_parametrized(m) for m in model.modules()])
        kinds.extend(
            [isinstance(m, nn.BatchNorm2d) or (m.training and isinstance(m, nn.Dropout)) for m in model.modules()]
        )
        kinds.extend([p.requires_grad or p.dtype != torch.float32 for p in model.parameters()])
        return x

    with torch.autocast("cpu", torch.bfloat16):
        attacks = [Fixed(act=look), SHORT]
        result = evaluate(net, [Batch(x, y)], threat=ThreatModel(eps=0.01), attacks=attacks, seed=0)
    assert result.clean_accuracy == 1
    assert not any(kinds)
    assert modes == [module.training for module in net.modules()]
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    for name, parameter in net.named_parameters():
        assert (parameter.grad is None) is (gradients[name] is None)
        assert parameter.grad is None or torch.equal(parameter.grad, gradients[name])
        assert parameter.requires_grad
    assert torch.equal(torch.get_rng_state(), noise)


def test_a_network_that_reshapes_by_view_is_evaluated_all_the_same():
    class View(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(144, 3)

        def forward(self, x):
            return self.head(self.conv(x).view(len(x), -1))

    net, x = View(), torch.rand(4, 1, 8, 8)
    batch = Batch(x, net(x).argmax(1))
    assert evaluate(net, [batch], threat=ThreatModel(eps=0.01), attacks=[SHORT], seed=0).clean_accuracy == 1


def cusp(x):
    """Zero, with a gradient that is NaN."""
    return (x.flatten(1).sum(1, keepdim=True) * 0).sqrt()


def test_a_gradient_of_nan_is_no_robustness():
    net = brightness()
    plain = net.forward
    batch = Batch(flat(0.9, 0.8), torch.ones(2, dtype=torch.int64))

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return plain(x) + cusp(x)

    for norm in ("linf", "l2"):
        with pytest.raises(EvaluationError, match=r"attack 'pgd-5x2' failed.*NaN"):
            evaluate(Masked(), [batch], threat=ThreatModel(norm=norm, eps=0.1), attacks=[SHORT], seed=0)


def boom(model, x, y):
    raise ZeroDivisionError("out of luck")


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (boom, "attack 'fixed' failed: ZeroDivisionError: out of luck"),
        (lambda model, x, y: x[:, :, :1], r"attack 'fixed' failed.*\(2, 1, 1, 2\) for \(2, 1, 2, 2\)"),
        (lambda model, x, y: x * float("nan"), "attack 'fixed' failed.*NaN"),
        (lambda model, x, y: None, "attack 'fixed' failed"),
    ],
)
def test_an_attack_that_fails_is_named_and_never_robust(act, message):
    batch = Batch(flat(0.9, 0.8), torch.ones(2, dtype=torch.int64))
    with pytest.raises(EvaluationError, match=message):
        evaluate(brightness(), [batch], threat=ThreatModel(eps=0.1), attacks=[Fixed(act=act)], seed=0)


def test_refuses_what_cannot_be_evaluated():
    net, good, threat = brightness(), Batch(flat(0.9), torch.tensor([1])), ThreatModel(eps=0.1)
    with pytest.raises(EvaluationError, match="no images"):
        evaluate(net, [], threat=threat, attacks=[SHORT], seed=0)
    with pytest.raises(SpecError, match="'fgsm' needs a threat model"):
        evaluate(net, [good], attacks=[FGSM()], seed=0)
    with pytest.raises(SpecError, match="two attacks are called 'fgsm'"):
        evaluate(net, [good], threat=threat, attacks=[FGSM(), FGSM()], seed=0)
    with pytest.raises(SpecError, match="no attack 'fgms' is run; did you mean 'fgsm'"):
        evaluate(net, [good], threat=threat, attacks=[FGSM()], seed=0, attack_samples={"fgms": 3})
    with pytest.raises(SpecError, match="at least 1 image, got 0"):
        evaluate(net, [good], threat=threat, attacks=[FGSM()], seed=0, attack_samples={"fgsm": 0})
    with pytest.raises(DataError, match=r"pixels must lie in \[0, 1\], found 0.9 to 1.9"):
        evaluate(net, [Batch(flat(0.9, 1.9), torch.tensor([1, 1]))], seed=0)
    with pytest.raises(DataError, match="labels run from 0 to 2, but the network has 2 classes"):
        evaluate(net, [Batch(flat(0.9, 0.1), torch.tensor([0, 2]))], seed=0)
    net[2].bias.data.fill_(float("inf"))
    with pytest.raises(EvaluationError, match="NaN or infinite"):
        evaluate(net, [good], seed=0)
