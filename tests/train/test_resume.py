"""A run that is killed and started again ends with the very bits of one that was not."""

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings, strategies

from damage import QUICK, complaint, structural
from hydraprune.core.errors import CheckpointError, TrainingError
from hydraprune.core.tensors import load_tensors, save_tensors
from hydraprune.masks.view import MaskView
from hydraprune.objectives.trades import TRADES
from hydraprune.train import Hook, Optim
from hydraprune.train.optim import Average
from hydraprune.train.state import States, both
from train.small import EPOCHS, OPTIMS, STEPS, KillAfterEpoch, KillAtStep, Killed, masked, net, same, train


@cache
def uninterrupted(over, optim):
    return train(over, OPTIMS[optim])


@pytest.mark.parametrize("over", ["weights", "scores"])
@pytest.mark.parametrize("optim", OPTIMS)
def test_killed_at_any_step(tmp_path, over, optim):
    model, history = uninterrupted(over, optim)
    assert not same(model, train(over, OPTIMS[optim], epochs=1)[0])
    for step in range(1, STEPS * EPOCHS + 1):
        state = tmp_path / f"{step}.safetensors"
        with pytest.raises(Killed):
            train(over, OPTIMS[optim], state=state, hooks=[KillAtStep(step)])
        assert state.exists() == (step > STEPS)
        again, resumed = train(over, OPTIMS[optim], state=state)
        assert same(again, model), step
        assert resumed == history


@pytest.mark.parametrize("optim", OPTIMS)
def test_killed_between_an_epoch_and_its_saving_and_again_later(tmp_path, optim):
    model, history = uninterrupted("scores", optim)
    state = tmp_path / "state.safetensors"
    for kill in (KillAfterEpoch(1), KillAtStep(5), KillAfterEpoch(2), KillAfterEpoch(3)):
        with pytest.raises(Killed):
            train("scores", OPTIMS[optim], state=state, hooks=[kill])
    assert load_tensors(state)[1]["epoch"] == 2
    again, resumed = train("scores", OPTIMS[optim], state=state)
    assert same(again, model)
    assert resumed == history


@pytest.mark.parametrize("optim", OPTIMS)
def test_killed_after_the_last_epoch_was_saved(tmp_path, optim):
    model, history = uninterrupted("weights", optim)
    state = tmp_path / "state.safetensors"
    assert same(train("weights", OPTIMS[optim], state=state)[0], model)
    again, resumed = train("weights", OPTIMS[optim], state=state, hooks=[KillAtStep(1)])
    assert same(again, model)
    assert resumed == history


def test_killed_while_saving(tmp_path, monkeypatch):
    model, history = uninterrupted("scores", "sgd")
    state = tmp_path / "state.safetensors"

    def cut_short(path, content):
        (path.parent / f".{path.name}.half").write_bytes(content[: len(content) // 2])
        raise Killed

    with pytest.raises(Killed):
        train("scores", OPTIMS["sgd"], state=state, hooks=[KillAtStep(4)])
    with monkeypatch.context() as patch:
        patch.setattr("hydraprune.core.tensors.write_atomically", cut_short)
        with pytest.raises(Killed):
            train("scores", OPTIMS["sgd"], state=state)
    again, resumed = train("scores", OPTIMS["sgd"], state=state)
    assert same(again, model)
    assert resumed == history


def test_killed_by_the_system(tmp_path):
    state = tmp_path / "state.safetensors"
    script = Path(__file__).with_name("small.py")
    with subprocess.Popen([sys.executable, str(script), str(state)], stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout:
            if int(line) == STEPS + 2:
                child.kill()
                break
    assert child.returncode == -9
    assert load_tensors(state)[1]["epoch"] == 1
    model, history = uninterrupted("scores", "sgd")
    again, resumed = train("scores", OPTIMS["sgd"], state=state)
    assert same(again, model)
    assert resumed == history


def test_the_hooks_see_where_a_resumed_run_stands(tmp_path):
    class Seen(Hook):
        def __init__(self):
            self.calls = []

        def on_start(self, epochs, steps_per_epoch, done):
            self.calls.append(("start", epochs, steps_per_epoch, done))

        def on_step(self, clock, images, loss):
            self.calls.append(("step", clock.step, images))

        def on_epoch(self, epoch, model, metrics):
            self.calls.append(("epoch", epoch))
            metrics["noted"] = float(epoch)

        def on_end(self):
            self.calls.append(("end",))

    state, seen = tmp_path / "state.safetensors", Seen()
    with pytest.raises(Killed):
        train("scores", OPTIMS["sgd"], state=state, hooks=[seen, KillAtStep(5)])
    steps = [("step", step, 24) for step in range(1, 6)]
    assert seen.calls == [("start", 3, 3, 0), *steps[:3], ("epoch", 1), *steps[3:], ("end",)]
    seen.calls.clear()
    _, history = train("scores", OPTIMS["sgd"], state=state, hooks=[seen])
    assert seen.calls[:2] == [("start", 3, 3, 1), ("step", 4, 24)]
    assert seen.calls[-2:] == [("epoch", 3), ("end",)]
    assert [line["noted"] for line in history] == [1.0, 2.0, 3.0]


def test_only_hooks_that_began_are_ended():
    class Refusing(Hook):
        ended = False

        def on_start(self, epochs, steps_per_epoch, done):
            raise TrainingError("the disk is full")

        def on_end(self):
            self.ended = True

    class Begun(Hook):
        ended = False

        def on_end(self):
            self.ended = True

    begun, refusing = Begun(), Refusing()
    with pytest.raises(TrainingError, match="the disk is full"):
        train("scores", OPTIMS["sgd"], hooks=[begun, refusing])
    assert begun.ended
    assert not refusing.ended


def test_other_settings_are_refused_and_the_state_kept(tmp_path):
    state = tmp_path / "state.safetensors"
    train("scores", OPTIMS["sgd"], state=state, key="lr=0.1")
    before = state.read_bytes()
    with pytest.raises(CheckpointError, match=r"state\.safetensors belongs to other settings .* use a new folder"):
        train("scores", OPTIMS["sgd"], state=state, key="lr=0.2")
    assert state.read_bytes() == before


def damaged(content, how):
    changed = bytearray(content)
    if how == "altered":
        changed[-5] ^= 1
    return {"truncated": content[: len(content) // 2], "emptied": b"", "foreign": b"\x80\x04K\x01."}.get(how, changed)


DAMAGES = ["truncated", "altered", "emptied", "foreign"]


@pytest.fixture
def two(tmp_path):
    """Where a run was killed after two epochs that it saved."""
    state = tmp_path / "state.safetensors"
    with pytest.raises(Killed):
        train("scores", OPTIMS["adam"], state=state, hooks=[KillAtStep(8)])
    assert [load_tensors(file)[1]["epoch"] for file in both(state)] == [2, 1]
    return state


class Told(Hook):
    def __init__(self):
        self.notes = []

    def on_note(self, text):
        self.notes.append(text)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_passed_over_for_the_one_before(two, damage):
    model, history = uninterrupted("scores", "adam")
    two.write_bytes(damaged(two.read_bytes(), damage))
    told = Told()
    again, resumed = train("scores", OPTIMS["adam"], state=two, hooks=[told])
    assert same(again, model)
    assert resumed == history
    (note,) = told.notes
    assert note.startswith(f"{two} ")
    assert note.endswith("it is passed over: training goes on after epoch 1, from state.previous.safetensors")
    assert "\n" not in note


def test_a_damaged_state_does_not_take_the_place_of_the_one_before(two, monkeypatch):
    older = both(two)[1].read_bytes()
    two.write_bytes(b"")

    def killed(*arguments):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("hydraprune.train.state.save_tensors", killed)
        with pytest.raises(Killed):
            train("scores", OPTIMS["adam"], state=two)
    assert both(two)[1].read_bytes() == older


def test_killed_between_the_two_steps_of_saving(two):
    two.replace(both(two)[1])
    told = Told()
    again, resumed = train("scores", OPTIMS["adam"], state=two, hooks=[told])
    model, history = uninterrupted("scores", "adam")
    assert same(again, model)
    assert resumed == history
    assert told.notes == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_two_damaged_states_are_one_error(two, damage):
    for file in both(two):
        file.write_bytes(damaged(file.read_bytes(), damage))
    with pytest.raises(CheckpointError, match="remove both, which loses the stage's training") as caught:
        train("scores", OPTIMS["adam"], state=two)
    assert all(str(file) in str(caught.value) for file in both(two))
    assert "\n" not in str(caught.value)
    both(two)[1].unlink()
    with pytest.raises(CheckpointError, match=r"state\.safetensors .* remove it, which loses") as caught:
        train("scores", OPTIMS["adam"], state=two)
    assert "passed over" not in str(caught.value)


def test_a_state_of_other_settings_is_not_passed_over(two):
    tensors, meta = load_tensors(two)
    save_tensors(two, tensors, meta | {"key": "others"})
    with pytest.raises(CheckpointError, match=r"state\.safetensors belongs to other settings"):
        train("scores", OPTIMS["adam"], state=two)


def odd_tensors(tensors):
    """The same with one missing, of another type or shape, or under another name."""
    names = strategies.sampled_from(sorted(tensors))
    changes = [
        lambda name: {n: t for n, t in tensors.items() if n != name},
        lambda name: tensors | {name: tensors[name].double() if tensors[name].is_floating_point() else torch.ones(1)},
        lambda name: tensors | {name: torch.cat([tensors[name].flatten(), torch.ones(1).to(tensors[name])])},
        lambda name: tensors | {f"{name}x": tensors[name]},
        lambda name: tensors | {f"hooks/9/{name}": tensors[name]},
    ]
    return strategies.builds(lambda change, name: change(name), strategies.sampled_from(changes), names)


def test_a_state_that_was_signed_anew_changes_nothing_unless_all_of_it_fits(tmp_path):
    """Numbers of the history may be others; whatever else differs is damage."""
    state = tmp_path / "state.safetensors"
    with pytest.raises(Killed):
        train("scores", OPTIMS["adam"], state=state, hooks=[KillAtStep(4)])
    tensors, meta = load_tensors(state)
    key = meta["key"]
    odd = strategies.one_of(odd_tensors(tensors).map(lambda t: (t, meta)), structural(meta).map(lambda m: (tensors, m)))

    @settings(QUICK, max_examples=60)
    @given(odd)
    def check(odd):
        content, said = odd
        model = masked(net())
        before = {name: value.clone() for name, value in model.state_dict().items()}
        params = MaskView(model).train("scores")
        if not isinstance(said, dict):
            return
        save_tensors(state, content, said)
        states = States(state, key, model, OPTIMS["adam"], OPTIMS["adam"].build([p for _, p in params]), None, [])
        states.average = Average([p for _, p in params], 0.9)
        error = complaint(states.load, EPOCHS, str)
        if error is None:
            assert content is tensors
            assert [line["epoch"] for line in said["history"]] == [1]
        else:
            assert str(state) in error
            assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    check()


def test_a_full_disk_keeps_the_epoch_before(tmp_path, monkeypatch):
    model, _ = uninterrupted("weights", "sgd")
    state = tmp_path / "state.safetensors"

    def full(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:

        class Fill(Hook):
            def on_epoch(self, epoch, model, metrics):
                if epoch == 2:
                    patch.setattr("os.fsync", full)

        with pytest.raises(
            TrainingError, match=r"cannot write .*state\.safetensors: No space left on device; mend that"
        ):
            train("weights", OPTIMS["sgd"], state=state, hooks=[Fill()])
    (kept,) = tmp_path.iterdir()
    assert kept == both(state)[1]
    assert load_tensors(kept)[1]["epoch"] == 1
    assert same(train("weights", OPTIMS["sgd"], state=state)[0], model)


class Spoiled(TRADES):
    """TRADES whose loss need not be finite at the sixth step."""

    factor: ClassVar[float] = 1.0

    def __call__(self, model, batch, ctx):
        loss = super().__call__(model, batch, ctx)
        return loss._replace(value=loss.value * self.factor) if ctx.clock.step == 5 else loss


@pytest.mark.parametrize("bad", ["nan", "inf"])
def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_epoch_before(tmp_path, monkeypatch, bad):
    state = tmp_path / "state.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(Spoiled, "factor", float(bad))
        with pytest.raises(TrainingError, match=rf"the loss is {bad} at step 5 \(epoch 2\); lower the learning rate"):
            train("weights", OPTIMS["sgd"], Spoiled(steps=1), state=state)
    tensors, meta = load_tensors(state)
    assert meta["epoch"] == 1
    assert all(value.isfinite().all() for value in tensors.values())
    again, _ = train("weights", OPTIMS["sgd"], Spoiled(steps=1), state=state)
    assert same(again, uninterrupted("weights", "sgd")[0])


def test_a_learning_rate_beyond_reason_ends_in_the_same_error():
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d"):
        train("weights", Optim(lr=1e30))


def test_a_state_holds_nothing_but_tensors_and_json(tmp_path):
    state = tmp_path / "state.safetensors"
    train("scores", OPTIMS["sgd"], state=state, epochs=1)
    tensors, meta = load_tensors(state)
    assert meta.keys() == {"epoch", "history", "key", "average_steps"}
    assert {name.partition("/")[0] for name in tensors} == {"model", "optimizer", "average"}
    assert {name.removeprefix("model/") for name in tensors if name.startswith("model/")} >= {
        "0.parametrizations.weight.original", "0.parametrizations.weight.0.score", "1.running_mean",
    }  # fmt: skip
    assert net().state_dict().keys() & {name.removeprefix("model/") for name in tensors}
