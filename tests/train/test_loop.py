"""What one call of `fit` does, and what it leaves alone."""

from typing import Literal

import pytest
import torch
from torch import nn

from hydraprune.core.errors import SpecError
from hydraprune.core.objective import Batch, Objective
from hydraprune.masks.source import LearnedMask
from hydraprune.masks.view import MaskView
from hydraprune.objectives.free import Free
from hydraprune.objectives.natural import Natural
from hydraprune.train import Hook, OneProcess, Optim, fit
from train.small import ROBUST, THREAT, batches, digits, masked, net, plain_net, same, train


class Watched(Natural):
    """Natural training that notes what it is called with."""

    def __call__(self, model, batch, ctx):
        SEEN.append((model.training, batch, ctx))
        return super().__call__(model, batch, ctx)


SEEN: list[tuple] = []
PLAIN = digits().batches(24, seed=0, shuffle=True)
LEARN = Optim(kind="adam", lr=0.03)


@pytest.fixture(autouse=True)
def _nothing_seen():
    SEEN.clear()


def whole(model, **settings):
    return fit(model, list(model.named_parameters()), **{"batches": batches(), "objective": Natural()} | settings)


class Count(Hook):
    def __init__(self):
        self.steps = self.started = 0

    def on_start(self, epochs, steps_per_epoch, done):
        self.started += 1

    def on_step(self, clock, images, loss):
        self.steps += 1


def test_nothing_to_do_changes_nothing(tmp_path):
    model, count = net(), Count()
    state = tmp_path / "state.safetensors"
    assert fit(model, model.named_parameters(), batches(), Natural(), epochs=0, hooks=[count], state=state) == []
    assert same(model, net())
    assert (count.started, count.steps, state.exists()) == (0, 0, False)


@pytest.mark.parametrize("replays", [1, 4])
def test_free_training_takes_its_steps_on_each_batch(replays):
    model, count = plain_net(), Count()
    history = whole(model, objective=Free(replays=replays), epochs=2, threat=THREAT, hooks=[count])
    assert count.steps == 2 * 3 * replays
    assert [line["epoch"] for line in history] == [1, 2]

    class Clocks(Hook):
        seen = []

        def on_step(self, clock, images, loss):
            self.seen.append((clock.step, clock.steps_per_epoch, clock.epochs, clock.epoch))

    whole(plain_net(), objective=Free(replays=replays), epochs=2, threat=THREAT, hooks=[Clocks()])
    per_epoch = 3 * replays
    assert Clocks.seen == [(n, per_epoch, 2, n / per_epoch) for n in range(1, 2 * per_epoch + 1)]


def test_metrics_are_averages_over_images():
    """72 images in batches of 32, 32 and 8, under weights that hardly move."""
    model = plain_net()
    images = digits().batches(32, seed=0, shuffle=True)
    assert [len(x) for x, _ in images.epoch(0)] == [32, 32, 8]
    history = whole(model, batches=images, epochs=1, optim=Optim(lr=1e-12))
    (everything,) = digits().batches(72, seed=0).epoch(0)
    logits = plain_net()(everything.x)
    assert history[0]["loss"] == pytest.approx(nn.functional.cross_entropy(logits, everything.y).item(), abs=1e-6)
    assert history[0]["accuracy"] == pytest.approx((logits.argmax(1) == everything.y).double().mean().item(), abs=1e-7)
    assert history[0]["lr"] == pytest.approx(0.25e-12)
    assert history[0].keys() == {"epoch", "loss", "accuracy", "lr", "seconds"}


def test_metrics_start_anew_in_each_epoch():
    class Losses(Hook):
        seen = []

        def on_step(self, clock, images, loss):
            self.seen.append(loss)

    history = whole(plain_net(), epochs=3, optim=LEARN, hooks=[Losses()])
    assert [line["loss"] for line in history] == pytest.approx([sum(Losses.seen[i : i + 3]) / 3 for i in (0, 3, 6)])
    assert history[2]["loss"] < history[0]["loss"]


@pytest.mark.parametrize("over", ["weights", "scores"])
def test_only_what_is_to_move_moves(over):
    before = masked(net())
    start = {name: value.clone() for name, value in before.state_dict().items()}
    after, _ = train(over, Optim(lr=0.05))
    moved = {name for name, value in after.state_dict().items() if not torch.equal(value, start[name])}
    scores = {"0.parametrizations.weight.0.score", "5.parametrizations.weight.0.score"}
    norm = {"1.weight", "1.bias"}
    statistics = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    weights = {"0.parametrizations.weight.original", "5.parametrizations.weight.original", "5.bias"}
    assert moved == statistics | norm | (weights if over == "weights" else scores)


def test_every_mask_is_selected_once_in_each_step(monkeypatch):
    calls = []
    original = LearnedMask.current

    def counted(source):
        calls.append(source)
        return original(source)

    model = masked(net())
    params = MaskView(model).train("scores")
    monkeypatch.setattr(LearnedMask, "current", counted)
    fit(model, params, batches(), ROBUST, epochs=2, threat=THREAT)
    assert len(calls) == 2 * (6 + 1)  # and when the first batch is tried


def test_the_objective_sees_training_mode_whatever_a_hook_left_behind():
    class Evaluating(Hook):
        def on_epoch(self, epoch, model, metrics):
            model.eval()

    whole(net().eval(), objective=Watched(), epochs=2, hooks=[Evaluating()])
    assert [training for training, _, _ in SEEN] == [True] * 6


def test_the_objective_sees_the_threat_the_clock_and_an_empty_state_in_each_epoch():
    class Carrying(Watched):
        def __call__(self, model, batch, ctx):
            SIZES.append((ctx.clock.step, len(ctx.state)))
            ctx.state[str(ctx.clock.step)] = batch.x
            return super().__call__(model, batch, ctx)

    SIZES = []
    whole(net(), objective=Carrying(), epochs=2, threat=THREAT)
    assert SIZES == [(0, 0), (1, 1), (2, 2), (3, 0), (4, 1), (5, 2)]
    assert all(ctx.threat is THREAT for _, _, ctx in SEEN)


def colours(layout):
    """Three batches of colour images."""

    class Colours:
        def __len__(self):
            return 1

        def epoch(self, number):
            yield Batch(torch.rand(4, 3, 8, 8), torch.arange(4))

    whole(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), batches=Colours(), objective=Watched(), epochs=1, **layout)
    return SEEN[-1][1].x


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_memory_format_of_image_batches(channels_last):
    x = colours({"channels_last": channels_last})
    assert x.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert x.is_contiguous() != channels_last


def test_every_random_number_follows_from_the_seed():
    one, two, other = (train("weights", Optim(), seed=seed)[0] for seed in (1, 1, 2))
    assert same(one, two)
    assert not same(one, other)


def test_every_epoch_and_every_seed_has_random_numbers_of_its_own():
    class Drawing(Natural):
        def __call__(self, model, batch, ctx):
            draws.append((torch.rand(()).item(), torch.rand((), generator=ctx.rng).item()))
            return super().__call__(model, batch, ctx)

    draws = []
    for seed in (0, 1, 2**40):
        whole(plain_net(), objective=Drawing(), epochs=3, seed=seed)
    assert len({number for number, _ in draws}) == len({number for _, number in draws}) == 27
    first = draws.copy()
    draws.clear()
    whole(plain_net(), objective=Drawing(), epochs=3, seed=0)
    assert draws == first[:9]


def test_random_numbers_of_the_caller_change_nothing():
    first, _ = train("weights", Optim())

    class Drawing(Hook):
        def on_epoch(self, epoch, model, metrics):
            torch.rand(epoch)

    model = masked(net())
    params = MaskView(model).train("weights")
    torch.manual_seed(99)
    fit(model, params, batches(), ROBUST, optim=Optim(), epochs=3, threat=THREAT, seed=3, hooks=[Drawing()])
    assert same(first, model)


def test_an_objective_without_its_threat_says_so():
    with pytest.raises(SpecError, match="objective 'trades' needs a threat model"):
        train("weights", Optim(), threat=None)


def test_training_learns():
    """Over weights, and then over scores, which mends what pruning by magnitude has broken."""
    model = plain_net()
    history = whole(model, batches=PLAIN, epochs=15, optim=LEARN)
    assert history[-1]["accuracy"] > 0.9 > 0.4 > history[0]["accuracy"]
    pruned = masked(model)
    scores = fit(pruned, MaskView(pruned).train("scores"), PLAIN, Natural(), epochs=10, optim=LEARN)
    assert scores[-1]["loss"] < 0.8 * scores[0]["loss"]


def test_bf16_trains_and_keeps_weights_in_float32():
    seen = set()

    class Types(Objective):
        kind: Literal["types"] = "types"

        def __call__(self, model, batch, ctx):
            seen.add((model(batch.x).dtype, ctx.frozen(model)(batch.x).dtype))
            return ROBUST(model, batch, ctx)

    model = plain_net()
    settings = {"batches": PLAIN, "epochs": 15, "threat": THREAT, "optim": LEARN}
    history = whole(model, objective=Types(), fabric=OneProcess(bf16=True), **settings)
    assert seen == {(torch.bfloat16, torch.bfloat16)}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    exact = whole(plain_net(), objective=ROBUST, **settings)
    assert history[-1]["loss"] != exact[-1]["loss"]
    assert history[-1]["loss"] == pytest.approx(exact[-1]["loss"], rel=0.1)
