"""Schedules at points worked out by hand, and optimizers against loops written out."""

import math
from typing import Literal

import pytest
import torch
from torch import nn

from hydraprune.core.errors import SpecError
from hydraprune.core.objective import Clock, Loss, Objective
from hydraprune.objectives.natural import Natural
from hydraprune.train import Hook, Optim, fit
from hydraprune.train.optim import Average
from train.small import batches, plain_net


def rate(step, **settings):
    """The rate of step `step` of ten epochs with ten steps each."""
    return Optim(lr=0.2, **settings).rate(Clock(step, 10, 10))


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("constant", {0: 1, 50: 1, 99: 1}),
        ("cosine", {0: 1, 25: (1 + math.sqrt(0.5)) / 2, 50: 0.5, 75: (1 - math.sqrt(0.5)) / 2, 100: 0}),
        ("step", {0: 1, 74: 1, 75: 0.1, 89: 0.1, 90: 0.01, 99: 0.01}),
        ("onecycle", {0: 1 / 40, 19: 0.5, 39: 1, 40: 1, 70: 0.5, 99: 1 / 60, 100: 0}),
    ],
)
def test_schedules(schedule, shares):
    for step, share in shares.items():
        assert rate(step, schedule=schedule) == pytest.approx(0.2 * share, abs=1e-15), step


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("constant", {20: 1, 99: 1}),
        ("cosine", {20: 1, 60: 0.5, 100: 0}),
        ("step", {20: 1, 79: 1, 80: 0.1, 91: 0.1, 92: 0.01}),
        ("onecycle", {20: 1 / 32, 51: 1, 52: 1, 76: 0.5, 100: 0}),
    ],
)
def test_warm_up_grows_linearly_and_the_schedule_fills_what_is_left(schedule, shares):
    shares = {0: 1 / 21, 9: 10 / 21, 19: 20 / 21, **shares}
    for step, share in shares.items():
        assert rate(step, schedule=schedule, warmup_epochs=2) == pytest.approx(0.2 * share, abs=1e-15), step


def test_warm_up_of_half_an_epoch():
    assert [rate(step, warmup_epochs=0.5, schedule="constant") / 0.2 for step in range(6)] == pytest.approx(
        [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1]
    )


@pytest.mark.parametrize("schedule", ["cosine", "step", "onecycle", "constant"])
def test_every_rate_is_positive_and_none_is_above_lr(schedule):
    rates = [rate(step, schedule=schedule, warmup_epochs=1) for step in range(100)]
    assert all(0 < value <= 0.2 for value in rates)
    assert max(rates) == pytest.approx(0.2, rel=0.02)


class Slope(Objective):
    """The sum of all parameters: its gradient is 1 everywhere."""

    kind: Literal["slope"] = "slope"

    def __call__(self, model, batch, ctx):
        return Loss(sum(p.sum() for p in model.parameters()), {})


class Unused(nn.Linear):
    """A weight that the logits do not depend on."""

    def forward(self, x):
        return x.new_zeros(len(x), 10)


def test_the_rate_of_each_step_is_the_one_that_is_used():
    model = Unused(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    optim = Optim(lr=0.5, momentum=0, weight_decay=0, warmup_epochs=1, schedule="onecycle")

    class Rates(Hook):
        seen = [0.0]

        def on_step(self, clock, images, loss):
            self.seen.append(-model.weight.item())

    history = fit(model, list(model.named_parameters()), batches(), Slope(), epochs=3, optim=optim, hooks=[Rates()])
    used = [after - before for before, after in zip(Rates.seen, Rates.seen[1:], strict=False)]
    expected = [optim.rate(Clock(step, 3, 3)) for step in range(9)]
    assert used == pytest.approx(expected, abs=1e-6)
    assert [line["lr"] for line in history] == pytest.approx([expected[2], expected[5], expected[8]])


def by_hand(optim: Optim, epochs: int) -> nn.Module:
    """What `fit` does, written out for one tensor after another, in float64."""
    model = plain_net()
    params = [p.detach().double() for p in model.parameters()]
    memory = [{"m": torch.zeros_like(p), "v": torch.zeros_like(p)} for p in params]
    step = 0
    for epoch in range(epochs):
        for x, y in batches().epoch(epoch):
            loss = nn.functional.cross_entropy(model(x), y)
            gradients = [g.double() for g in torch.autograd.grad(loss, list(model.parameters()))]
            length = math.sqrt(sum(g.square().sum().item() for g in gradients))
            if optim.clip_norm is not None and length > optim.clip_norm:
                gradients = [g * optim.clip_norm / length for g in gradients]
            lr = optim.rate(Clock(step, 3, epochs))
            step += 1
            for p, g, slot in zip(params, gradients, memory, strict=True):
                if optim.kind == "adamw":
                    p *= 1 - lr * optim.weight_decay
                else:
                    g = g + optim.weight_decay * p
                if optim.kind == "sgd":
                    slot["m"] = g if step == 1 else optim.momentum * slot["m"] + g
                    p -= lr * (g + optim.momentum * slot["m"] if optim.nesterov else slot["m"])
                else:
                    slot["m"] = 0.9 * slot["m"] + 0.1 * g
                    slot["v"] = 0.999 * slot["v"] + 0.001 * g * g
                    spread = (slot["v"] / (1 - 0.999**step)).sqrt() + 1e-8
                    p -= lr * slot["m"] / (1 - 0.9**step) / spread
            for mine, p in zip(model.parameters(), params, strict=True):
                mine.data.copy_(p)
    return model


@pytest.mark.parametrize(
    "optim",
    [
        Optim(),
        Optim(nesterov=True, weight_decay=0.01, schedule="step"),
        Optim(momentum=0, clip_norm=0.5),
        Optim(kind="adam", lr=0.01, weight_decay=0.1, schedule="onecycle"),
        Optim(kind="adamw", lr=0.01, weight_decay=0.1, clip_norm=0.3, warmup_epochs=1),
    ],
    ids=["sgd", "nesterov", "clipped", "adam", "adamw"],
)
def test_fit_is_the_loop_written_out(optim):
    model = plain_net()
    fit(model, list(model.named_parameters()), batches(), Natural(), epochs=2, optim=optim)
    for mine, theirs in zip(model.parameters(), by_hand(optim, 2).parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def travelled(model):
    """The Euclidean distance of the parameters from those of a fresh net."""
    pairs = zip(model.parameters(), plain_net().parameters(), strict=True)
    return math.sqrt(sum((a - b).square().sum().item() for a, b in pairs))


def test_the_whole_gradient_is_clipped_to_the_norm_and_keeps_its_direction():
    def one_step(clip_norm):
        model = plain_net()
        optim = Optim(lr=1, momentum=0, weight_decay=0, schedule="constant", clip_norm=clip_norm)
        fit(model, list(model.named_parameters()), batches(72), Natural(), epochs=1, optim=optim)
        return model

    free, clipped, loose = one_step(None), one_step(0.1), one_step(1e6)
    assert travelled(free) > 0.15
    assert travelled(clipped) == pytest.approx(0.1, rel=1e-4)
    assert travelled(loose) == travelled(free)
    for a, b, start in zip(free.parameters(), clipped.parameters(), plain_net().parameters(), strict=True):
        torch.testing.assert_close((a - start) * 0.1 / travelled(free), b - start, rtol=1e-3, atol=1e-6)


class Trace(Hook):
    """The weights after every step, and those that validation sees after every epoch."""

    def __init__(self, model):
        self.model = model
        self.steps, self.epochs = [self.flat()], []

    def flat(self):
        return torch.cat([p.detach().double().flatten() for p in self.model.parameters()])

    def on_step(self, clock, images, loss):
        self.steps.append(self.flat())

    def on_epoch(self, epoch, model, metrics):
        self.epochs.append(self.flat())


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_the_average_follows_the_weights_and_takes_their_place(decay):
    def trained(ema):
        model = plain_net()
        trace = Trace(model)
        optim = Optim(ema=ema, lr=0.5, schedule="constant")
        fit(model, list(model.named_parameters()), batches(), Natural(), epochs=3, optim=optim, hooks=[trace])
        return trace

    with_average, without = trained(decay), trained(None)
    assert torch.equal(torch.stack(with_average.steps), torch.stack(without.steps))
    average, expected = with_average.steps[0], []
    for number, weights in enumerate(with_average.steps[1:], start=1):
        keep = min(decay, number / (number + 10))
        average = keep * average + (1 - keep) * weights
        expected.append(average)
    for epoch in range(3):
        torch.testing.assert_close(with_average.epochs[epoch], expected[3 * epoch + 2], rtol=1e-5, atol=1e-6)
        assert torch.equal(without.epochs[epoch], without.steps[3 * epoch + 3])
    torch.testing.assert_close(with_average.flat(), expected[-1], rtol=1e-5, atol=1e-6)
    assert (with_average.flat() - without.flat()).abs().max() > 0.01


def test_an_average_is_put_back_after_use():
    parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
    average = Average([parameter], 0.5)
    with torch.no_grad():
        parameter += 11
    average.update()
    with average.applied():
        torch.testing.assert_close(parameter.data, torch.tensor([11.0, 12.0]))
    torch.testing.assert_close(parameter.data, torch.tensor([12.0, 13.0]))
    with pytest.raises(RuntimeError, match="validation broke"), average.applied():
        raise RuntimeError("validation broke")
    torch.testing.assert_close(parameter.data, torch.tensor([12.0, 13.0]))


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"lr": 0}, r"Optim\.lr: .*greater than 0"),
        ({"lr": "one"}, r"Optim\.lr: 'one' is not a number or a fraction"),
        ({"kind": "rmsprop"}, r"Optim\.kind: .*'sgd', 'adam' or 'adamw'.*'rmsprop'"),
        ({"momentum": 1}, r"Optim\.momentum: .*less than 1"),
        ({"ema": 1}, r"Optim\.ema: .*less than 1"),
        ({"clip_norm": 0}, r"Optim\.clip_norm: .*greater than 0"),
        ({"learning_rate": 1}, r"unknown key 'learning_rate'; known: .*lr"),
    ],
)
def test_settings_that_cannot_be_used(values, complaint):
    with pytest.raises(SpecError, match=complaint):
        Optim(**values)
