"""Free adversarial training against algorithm 1 of its paper (arXiv:1904.12843), written as a loop."""

import copy

import pytest
import torch
from torch.nn import functional as F

from hydraprune.core.objective import Batch
from hydraprune.core.threat import ThreatModel
from hydraprune.objectives.free import Free
from hydraprune.objectives.natural import Natural
from hydraprune.train import Optim, fit
from objectives.small import BATCH, context, record, small

LR, EPS = 0.3, 0.1
BATCHES = [BATCH, Batch(BATCH.x.flip(0), BATCH.y.flip(0)), Batch(BATCH.x[:4], BATCH.y[:4])]


class Epoch:
    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def epoch(self, number):
        return iter(self.batches)


def algorithm_1(net, norm, replays, epochs, batches):
    """The images that the network is trained on, step after step."""
    seen = []
    optimizer = torch.optim.SGD(net.parameters(), LR)
    for _ in range(epochs):
        delta = torch.zeros(6, 1, 4, 4)
        for x, y in batches:
            for _ in range(replays):
                part = delta[: len(x)].clone().requires_grad_()
                images = torch.min(torch.max(x + part, torch.zeros(())), torch.ones(()))
                seen.append(images.detach().clone())
                optimizer.zero_grad()
                F.cross_entropy(net(images), y).backward()
                optimizer.step()
                for i, g in enumerate(part.grad):
                    if norm == "linf":
                        delta[i] = (delta[i] + EPS * g.sign()).clamp(-EPS, EPS)
                    else:
                        moved = delta[i] + EPS * g / g.norm()
                        delta[i] = moved * min(1, EPS / float(moved.norm()))
    return seen


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("replays", [1, 4])
def test_equals_algorithm_1_over_replays_batches_and_epochs(norm, replays):
    net = small()
    other = copy.deepcopy(net)
    expected = algorithm_1(other, norm, replays, 2, BATCHES)
    seen, _ = record(net)
    optim = Optim(lr=LR, momentum=0, weight_decay=0, schedule="constant")
    objective, threat = Free(replays=replays), ThreatModel(norm=norm, eps=EPS)
    history = fit(net, list(net.named_parameters()), Epoch(BATCHES), objective, epochs=2, optim=optim, threat=threat)
    assert len(seen) == len(expected) == 2 * 3 * replays
    assert [len(images) for images in seen] == [len(images) for images in expected]
    for found, slow in zip(seen, expected, strict=True):
        torch.testing.assert_close(found, slow, rtol=0, atol=1e-4)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)
    assert len(history) == 2

    for start in (0, 3 * replays):  # the perturbation starts anew with every epoch
        assert torch.equal(seen[start], BATCHES[0].x)
    if replays > 1:
        assert not torch.equal(seen[replays], BATCHES[1].x)  # and is carried over to the next batch
    replayed = [batch for batch in BATCHES for _ in range(replays)] * 2
    assert all((threat.distance(b.x, x) <= EPS * (1 + 1e-5)).all() for b, x in zip(replayed, seen, strict=True))


def test_rows_that_a_smaller_batch_does_not_use_keep_their_perturbation():
    net, objective, ctx = small(), Free(), context(ThreatModel(eps=EPS))
    for batch in (BATCH, BATCH, BATCHES[2]):
        objective(net, batch, ctx).value.backward()
    before = ctx.state["delta"].detach().clone()
    objective(net, BATCHES[2], ctx)
    after = ctx.state["delta"]
    assert after.shape == BATCH.x.shape
    assert before[4:].abs().max() > EPS / 2
    assert torch.equal(after[4:], before[4:])
    assert not torch.equal(after[:4], before[:4])


def test_a_larger_batch_starts_anew():
    net, objective, ctx = small(), Free(), context(ThreatModel(eps=EPS))
    objective(net, BATCHES[2], ctx).value.backward()
    objective(net, BATCH, ctx)
    assert ctx.state["delta"].shape == BATCH.x.shape
    assert not ctx.state["delta"].any()


def test_without_a_backward_pass_the_perturbation_stays():
    net, objective, ctx = small(), Free(), context(ThreatModel(eps=EPS))
    objective(net, BATCH, ctx).value.backward()
    objective(net, BATCH, ctx)
    before = ctx.state["delta"].detach().clone()
    objective(net, BATCH, ctx)
    assert before.any()
    assert torch.equal(ctx.state["delta"], before)


def test_each_replay_is_a_step_of_its_own():
    assert Free(replays=7).steps_per_batch() == 7
    assert Natural().steps_per_batch() == 1
