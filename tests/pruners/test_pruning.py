"""One handle from the first masks to the frozen ones: in `fit`, and in loops that know nothing of pruning."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import hydraprune as hp
from contracts.material import batch, net, snapshot, unchanged
from hydraprune.core.errors import PruningError
from hydraprune.core.objective import Batch
from hydraprune.pruners import PRUNERS
from hydraprune.pruners.hydra import Hydra
from hydraprune.pruners.probe import Probe

EPOCHS = 4
X, Y = batch(24)
OPTIMIZERS = {
    "sgd": (hp.Optim(lr=0.05, schedule="constant"), torch.optim.SGD, {"momentum": 0.9, "weight_decay": 1e-4}),
    "adamw": (hp.Optim(kind="adamw", lr=0.01, schedule="constant", weight_decay=0.01), torch.optim.AdamW, {}),
}
TRAINED = [name for name in PRUNERS.names() if PRUNERS.get(name).over]
UNTRAINED = set(PRUNERS.names()) - set(TRAINED)


def loader(size=8):
    return DataLoader(TensorDataset(X, Y), size)


class Pairs:
    """The same batches for `fit`."""

    def __len__(self):
        return 3

    def epoch(self, number):
        return iter([Batch(x, y) for x, y in loader()])


def looped(pruning, optimizer, epochs=EPOCHS, start=0, accumulate=1):
    """A user's loop."""
    data, model = loader(8 // accumulate), pruning.view.model
    pruning.follow(optimizer, epochs=EPOCHS, steps_per_epoch=len(data) // accumulate)
    for _ in range(start, epochs):
        model.train()
        for number, (x, y) in enumerate(data, start=1):
            (cross_entropy(model(x), y) / accumulate).backward()
            if number % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()


def sgd(pruning):
    return torch.optim.SGD(pruning.parameters(), lr=0.05, momentum=0.9)


def same(first, second):
    return all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("pruner", ["magnitude", *TRAINED])
def test_a_loop_of_ones_own_ends_with_the_network_of_fit(pruner, optimizer):
    """Bit for bit."""
    optim, kind, settings = OPTIMIZERS[optimizer]
    ours, theirs = net(), net()
    with hp.prune(ours, pruner, 0.6) as pruning:
        moving = pruning.parameters()
        hp.fit(ours, moving, Pairs(), hp.Natural(), epochs=EPOCHS, optim=optim, hooks=[pruning], channels_last=False)
    with hp.prune(theirs, pruner, 0.6) as pruning:
        looped(pruning, kind(pruning.parameters(), lr=optim.lr, fused=True, **settings))
    assert same(ours, theirs)
    view = hp.MaskView(theirs)
    assert view.count().kept == view.count().total - sum(int(0.6 * c.total) for c in view.counts().values())
    assert all(tensor.requires_grad for tensor in theirs.parameters())


@pytest.mark.parametrize("pruner", ["hydra", "rigl", "gradual", "admm"])
def test_steps_are_those_of_the_optimizer_however_many_batches_it_gathers(pruner):
    whole, halves = net(), net()
    whole[1] = halves[1] = nn.Identity()  # a norm sees another batch
    for model, accumulate in ((whole, 1), (halves, 2)):
        with hp.prune(model, pruner, 0.6) as pruning:
            looped(pruning, sgd(pruning), accumulate=accumulate)
        assert pruning.clock.step == 12
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(value, halves.state_dict()[name], atol=1e-5, rtol=1e-4)


def test_a_step_that_a_scaler_leaves_out_is_none():
    """Gradients are unscaled when the pruner sees them."""
    model = net()
    with hp.prune(model, {"kind": "rigl", "updates": 4}, 0.6) as pruning:
        optimizer, scaler = sgd(pruning), torch.amp.GradScaler("cpu", init_scale=2.0**10)
        pruning.follow(optimizer, epochs=1, steps_per_epoch=3)
        sizes = []
        optimizer.register_step_pre_hook(lambda *_: sizes.append(float(pruning.weights["0.weight"].grad.norm())))
        for number, (x, y) in enumerate([*loader(), next(iter(loader()))]):
            with torch.autocast("cpu", torch.bfloat16):
                loss = cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            if number == 1:
                pruning.weights["0.weight"].grad[0] = torch.inf
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        assert pruning.clock.step == len(sizes) == 3
        assert max(sizes) < 10
    assert hp.MaskView(model).count().kept == 806 - sum(int(0.6 * size) for size in (54, 432, 320))


def test_a_fused_optimizer_that_unscales_in_its_step_is_refused():
    with hp.prune(net(), "hydra", 0.6) as pruning:
        optimizer = torch.optim.SGD(pruning.parameters(), lr=0.05, fused=True)
        pruning.follow(optimizer)
        scaler = torch.amp.GradScaler("cpu")
        scaler.scale(cross_entropy(pruning.view.model(X), Y)).backward()
        with pytest.raises(PruningError, match="unscales gradients where nobody sees them; make it with fused=False"):
            scaler.step(optimizer)
        optimizer.grad_scale = optimizer.found_inf = None
        optimizer.step()


class Killed(BaseException):
    """Ends a loop as a signal would; `optimizer` is what it used."""


def killed(pruning, epochs):
    """In the middle of a `with` block."""
    with pruning:
        looped(pruning, optimizer := sgd(pruning), epochs)
        pruning.view.model[0].train(not pruning.view.model[0].training)
        raise Killed(optimizer)


def fails(pruning, epochs):
    with pytest.raises(Killed) as found:
        killed(pruning, epochs)
    return found.value.args[0]


@pytest.mark.parametrize("pruner", ["hydra", "rigl", "harp", "deep-r", {"kind": "hydra", "gradual": 3}])
def test_a_loop_that_fails_leaves_a_whole_model_and_goes_on_in_the_same_handle(pruner):
    whole, cut = net(), net().eval()
    with hp.prune(whole, pruner, 0.6) as pruning:
        looped(pruning, sgd(pruning))
    cut[0].weight.requires_grad_(False)
    pruning = hp.prune(cut, pruner, 0.6)
    before = snapshot(cut)
    first = fails(pruning, 2)
    after = snapshot(cut)
    assert (before["modes"], before["flags"]) == (after["modes"], after["flags"])
    step = pruning.clock.step
    assert step == 6
    cut(X).sum().backward()
    first.step()
    assert pruning.clock.step == step, "no hook is left"
    cut.load_state_dict(after["state"])
    with pruning:
        again = sgd(pruning)
        again.load_state_dict(first.state_dict())
        for index, slots in again.state.items():
            slots["momentum_buffer"].copy_(first.state[index]["momentum_buffer"])
        first.zero_grad()
        pruning.view.model.train()
        looped(pruning, again, start=2)
    assert pruning.view.count() == hp.MaskView(whole).count()
    assert pruning.clock.step == 12


@pytest.mark.parametrize("pruner", TRAINED)
def test_a_loop_of_another_process_goes_on_to_the_same_network(pruner):
    whole, early = net(), net()
    with hp.prune(whole, pruner, 0.6) as pruning:
        looped(pruning, sgd(pruning))
    pruning = hp.prune(early, pruner, 0.6)
    optimizer = fails(pruning, 2)
    saved = [{k: v.clone() for k, v in each.items()} for each in (early.state_dict(), pruning.state_dict())]
    late = net()
    with hp.prune(late, pruner, 0.6) as pruning:
        again = sgd(pruning)
        again.load_state_dict(optimizer.state_dict())
        late.load_state_dict(saved[0])
        pruning.load_state_dict(saved[1])
        looped(pruning, again, start=2)
    assert same(whole, late)


def test_a_state_of_another_is_refused():
    model = net()
    state = hp.prune(net(), "rigl", 0.6).state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    for other in ("harp", "hydra"):
        with pytest.raises(PruningError, match=f"this state is not one of pruner '{other}' on this Sequential; prune"):
            hp.prune(model, other, 0.6).load_state_dict(state)


def test_a_loop_that_failed_may_be_taken_as_it_is():
    pruning = hp.prune(model := net(), "hydra", 0.6)
    fails(pruning, 1)
    learned = {name: mask.clone() for name, mask in pruning.view.masks().items()}
    pruning.freeze()
    assert all(torch.equal(mask, learned[name]) for name, mask in hp.MaskView(model).masks().items())
    with pytest.raises(PruningError, match="finished and its masks stay; call prune again"), pruning:
        pass


LENGTHS = {"epochs": 2, "steps_per_epoch": 3}
INSIDE = {
    "is entered already": lambda p, _: p.__enter__(),
    r"'rigl' acts by how much .* say how long it is: follow\(optimizer, epochs": lambda p, optimizer: p.follow(
        optimizer
    ),
    "'rigl' acts by": lambda p, optimizer: p.follow(optimizer, epochs=0, steps_per_epoch=3),
    "epochs is -1": lambda p, optimizer: p.follow(optimizer, epochs=-1, steps_per_epoch=3),
    r"optimizer does not hold '3\.weight', so .* make it of pruning\.parameters\(\)": lambda p, _: p.follow(
        torch.optim.SGD([p.weights["0.weight"], p.weights["6.weight"]]), **LENGTHS
    ),
    "follows an optimizer already; give": lambda p, optimizer: [p.follow(optimizer, **LENGTHS) for _ in range(2)],
    "follows an optimizer already; `fit` has its own": lambda p, optimizer: [
        p.follow(optimizer, **LENGTHS),
        hp.fit(p.view.model, p.parameters(), Pairs(), hp.Natural(), epochs=1, hooks=[p]),
    ],
    "follows an optimizer already; load": lambda p, optimizer: [p.follow(optimizer, **LENGTHS), p.load_state_dict({})],
    "'rigl' has seen no optimizer step, so its masks were never trained": lambda p, _: None,
}
"""Message -> what earns it."""


@pytest.mark.parametrize("message", INSIDE)
def test_what_is_misused_is_said_and_nothing_has_changed(message):
    def inside():
        with pruning:
            INSIDE[message](pruning, sgd(pruning))

    pruning = hp.prune(model := net(), "rigl", 0.6)
    before = snapshot(model)
    with pytest.raises(hp.HydrapruneError, match=message):
        inside()
    assert unchanged(model, before)


@pytest.mark.parametrize("call", [lambda p: p.parameters(), lambda p: p.follow(None)])
def test_outside_the_block_there_is_nothing_to_train(call):
    with pytest.raises(PruningError, match="enter the pruning first"):
        call(hp.prune(net(), "rigl", 0.6))


def test_more_steps_than_were_said_are_refused():
    pruning = hp.prune(net(), "rigl", 0.6)

    def too_long():
        with pruning:
            looped(pruning, optimizer := sgd(pruning))
            optimizer.step()

    with pytest.raises(PruningError, match=r"goes on after 4 epochs of 3 steps; say how long"):
        too_long()
    assert pruning.clock.step == 12
    pruning.freeze()


def test_scores_need_no_follower_but_training():
    """Learned masks that do not act by time are found by any loop; that nothing was trained is noticed."""
    with hp.prune(net(), Hydra(), 0.6) as pruning:
        optimizer = torch.optim.SGD(pruning.parameters(), lr=0.05, fused=True)
        cross_entropy(pruning.view.model(X), Y).backward()
        optimizer.step()
    assert hp.MaskView(pruning.view.model).sources["0.weight"].current().dtype == torch.bool
    with pytest.raises(PruningError, match="'hydra' has seen no optimizer step"), hp.prune(net(), Hydra(), 0.6):
        pass


@pytest.mark.parametrize("pruner", [*PRUNERS.names(), {"kind": "hydra", "gradual": 1}])
def test_who_acts_by_time_asks_how_long_training_is(pruner):
    """Whoever trains weights, or learns what a layer keeps, or lets the sparsity grow."""
    probe = Probe(torch.Generator(), hp.Natural(), None, lambda: [batch()])
    model, paced = net(), pruner not in ("hydra", "edge-popup") and pruner not in [*UNTRAINED]
    with hp.prune(model, pruner, 0.5, None, probe) as pruning:
        assert pruning.pruner.paced == paced
        optimizer = sgd(pruning)
        with pytest.raises(PruningError, match="say how long it is") if paced else nullcontext():
            pruning.follow(optimizer)
        if paced:
            pruning.follow(optimizer, epochs=1, steps_per_epoch=1)
        cross_entropy(model(X), Y).backward()
        optimizer.step()
