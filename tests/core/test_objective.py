"""What an objective is told: the adversary, the clock, and the frozen network."""

import pytest
import torch
from torch import nn

from hydraprune.core.errors import SpecError
from hydraprune.core.objective import Clock, Context
from hydraprune.core.threat import ThreatModel


def context(threat: ThreatModel | None = None) -> Context:
    return Context(threat, torch.Generator(), Clock(0, 10, 3))


def test_the_adversary_is_there_or_asked_for():
    threat = ThreatModel(eps=0.1)
    assert context(threat).adversary("trades") is threat
    with pytest.raises(SpecError, match=r"objective 'trades' needs a threat model; add `threat: \{norm: linf"):
        context().adversary("trades")


def test_the_clock_tells_epochs():
    assert Clock(25, 10, 3).epoch == 2.5
    assert Clock(0, 0, 3).epoch == 0


def test_the_frozen_network_follows_the_clock_and_the_model():
    ctx, model, x = context(), nn.Linear(3, 2), torch.rand(4, 3)
    frozen = ctx.frozen(model)
    before = frozen(x)
    with torch.no_grad():
        model.weight.mul_(2)
    assert ctx.frozen(model) is frozen
    assert torch.equal(frozen(x), before)
    ctx.clock = Clock(1, 10, 3)
    assert ctx.frozen(model) is frozen
    assert torch.equal(frozen(x), model(x))
    other = nn.Linear(3, 2)
    assert torch.equal(ctx.frozen(other)(x), other(x))
    assert torch.equal(ctx.frozen(model)(x), model(x))


def test_another_network_is_there_or_asked_for():
    ctx, teacher = context(), nn.Linear(3, 2)
    with pytest.raises(SpecError, match=r"objective 'distill' needs the network 'teacher'; give `networks="):
        ctx.network("teacher", "distill")
    ctx.networks = {"teacher": teacher}
    assert ctx.network("teacher", "distill") is teacher


def test_what_is_left_to_undo_is_undone_once_and_last_first():
    ctx, done = context(), []
    ctx.after_backward += [lambda: done.append("first"), lambda: done.append("second")]
    ctx.settle()
    ctx.settle()
    assert done == ["second", "first"]
