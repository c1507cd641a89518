"""The log of metrics, the curves and the progress bar."""

import io
import json

import pytest
from rich.console import Console

from hydraprune.core.errors import TrainingError
from hydraprune.train import Hook
from hydraprune.train.hooks import Log, ProgressBar
from train.small import OPTIMS, KillAfterEpoch, Killed, train

NAMES = {"loss", "accuracy", "robust_accuracy", "clean_loss", "stability_loss", "lr", "seconds"}


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def log(folder, stage="prune"):
    return Log(stage, folder / "metrics.jsonl", folder / "tensorboard")


def curves(folder, stage="prune"):
    """Name -> [(epoch, value)], as TensorBoard itself reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard" / stage))
    events.Reload()
    return {name: [(s.step, s.value) for s in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_a_line_and_a_point_for_every_epoch(tmp_path):
    _, history = train("scores", OPTIMS["sgd"], hooks=[log(tmp_path)])
    written = lines(tmp_path)
    assert [(line["stage"], line["epoch"]) for line in written] == [("prune", 1), ("prune", 2), ("prune", 3)]
    assert [
        {k: v for k, v in line.items() if k not in ("stage", "seconds", "schema", "digest")} for line in written
    ] == history
    drawn = curves(tmp_path)
    assert drawn.keys() == NAMES
    assert drawn["loss"] == [(line["epoch"], pytest.approx(line["loss"])) for line in written]


def test_an_epoch_that_was_logged_but_not_saved_is_logged_once(tmp_path):
    """Beside the lines of another stage, which stay."""
    train("weights", OPTIMS["sgd"], epochs=2, hooks=[log(tmp_path, "pretrain")])
    state = tmp_path / "state.safetensors"
    for _ in range(2):
        with pytest.raises(Killed):
            train("scores", OPTIMS["sgd"], state=state, hooks=[log(tmp_path), KillAfterEpoch(2)])
    train("scores", OPTIMS["sgd"], state=state, hooks=[log(tmp_path)])
    written = [(line["stage"], line["epoch"]) for line in lines(tmp_path)]
    assert written == [("pretrain", 1), ("pretrain", 2), ("prune", 1), ("prune", 2), ("prune", 3)]
    assert [step for step, _ in curves(tmp_path)["loss"]] == [1, 2, 3]
    assert [step for step, _ in curves(tmp_path, "pretrain")["loss"]] == [1, 2]


DAMAGED = {
    "binary": b"\x00\xff\xfe\x80",
    "no JSON": b"{",
    "no mapping": b"[1]",
    "text": b'"x"',
    "deep": b"[" * 100_000,
    "no stage": b'{"epoch": 1}',
    "no epoch": b'{"stage": "pretrain"}',
    "a stage of another type": b'{"stage": 3, "epoch": 1}',
    "an epoch of another type": b'{"stage": "prune", "epoch": "1"}',
    "nothing": b"",
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_line_is_dropped_and_said_and_stops_nothing(tmp_path, damage):
    whole = '{"stage": "pretrain", "epoch": 1, "loss": 0.5}\n'
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(whole.encode() + DAMAGED[damage] + b"\n" + DAMAGED[damage] + b"\n" + b'{"stage": "pretrain", "ep')
    told: list[str] = []
    train("scores", OPTIMS["sgd"], hooks=[Log("prune", file, tmp_path / "tensorboard", told.append)])
    assert [(line["stage"], line["epoch"]) for line in lines(tmp_path)] == [
        ("pretrain", 1), ("prune", 1), ("prune", 2), ("prune", 3),
    ]  # fmt: skip
    (text,) = told
    assert text.startswith(f"{file}:2 ")
    assert text.endswith("it is dropped (and 1 more)")
    assert "\n" not in text


def test_epochs_are_appended(tmp_path, monkeypatch):
    """However long the log is, an epoch costs a line."""
    earlier = [f'{{"stage": "pretrain", "epoch": {epoch}}}\n' for epoch in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(earlier))
    written = []

    def counted(path, content):
        written.append(path.name)
        path.write_bytes(content)

    monkeypatch.setattr("hydraprune.train.hooks.write_atomically", counted)
    train("scores", OPTIMS["sgd"], hooks=[log(tmp_path)])
    assert written == ["metrics.jsonl"]
    assert len(lines(tmp_path)) == 6


def test_a_note_is_shown():
    text = io.StringIO()
    ProgressBar("prune", Console(file=text, width=20)).on_note("a state [x] was passed over")
    assert text.getvalue() == "prune: a state [x] was passed over\n"


@pytest.mark.parametrize("blocked", ["metrics.jsonl", "tensorboard"])
def test_a_log_that_cannot_be_written_is_one_error(tmp_path, blocked):
    folder = tmp_path / "file"
    folder.write_text("no folder")
    places = {"file": tmp_path / "metrics.jsonl", "curves": tmp_path / "tensorboard"}
    places["file" if blocked == "metrics.jsonl" else "curves"] = folder / blocked
    with pytest.raises(
        TrainingError, match=rf"cannot write .*{blocked}.*: (File exists|Not a directory); mend that"
    ) as caught:
        train("scores", OPTIMS["sgd"], hooks=[Log("prune", **places)])
    assert "\n" not in str(caught.value)


def lines_of(text):
    return [line.strip() for line in text.getvalue().splitlines() if line.strip()]


def test_one_line_stays_of_the_progress_bar():
    text = io.StringIO()
    _, history = train("scores", OPTIMS["sgd"], hooks=[ProgressBar("prune", Console(file=text, width=200))])
    last = history[-1]
    figures = f"loss {last['loss']:.3f}, accuracy {last['accuracy']:.3f}, robust accuracy {last['robust_accuracy']:.3f}"
    assert lines_of(text) == [f"prune: {figures}"]


def test_the_progress_bar_says_where_it_goes_on(tmp_path):
    state = tmp_path / "state.safetensors"
    with pytest.raises(Killed):
        train("scores", OPTIMS["sgd"], state=state, hooks=[KillAfterEpoch(2)])
    seen = []

    class Look(Hook):
        def on_step(self, clock, images, loss):
            seen.append(bar._bar.tasks[0].completed)

    text = io.StringIO()
    bar = ProgressBar("prune", Console(file=text, width=200))
    train("scores", OPTIMS["sgd"], state=state, hooks=[bar, Look()])
    assert seen == [4, 5, 6, 7, 8, 9]
    text = lines_of(text)
    assert text[0] == "prune: resumed after epoch 1 of 3"
    assert len(text) == 2


def test_the_progress_bar_counts_every_step():
    text = io.StringIO()
    bar = ProgressBar("prune", Console(file=text))
    train("scores", OPTIMS["sgd"], hooks=[bar])
    (task,) = bar._bar.tasks
    assert (task.completed, task.total, task.finished) == (9, 9, True)
    assert "epoch 3/3" in task.fields["note"]


def test_a_line_that_stands_there_twice_is_dropped_and_told(tmp_path):
    state = tmp_path / "state.safetensors"
    with pytest.raises(Killed):
        train("scores", OPTIMS["sgd"], state=state, hooks=[log(tmp_path), KillAfterEpoch(2)])
    file = tmp_path / "metrics.jsonl"
    first, *_ = file.read_text().splitlines(keepends=True)
    with file.open("a") as end:
        end.write(first)
    said: list[str] = []
    hook = log(tmp_path)
    hook._told = said.append
    train("scores", OPTIMS["sgd"], state=state, hooks=[hook])
    assert [(line["stage"], line["epoch"]) for line in lines(tmp_path)] == [("prune", 1), ("prune", 2), ("prune", 3)]
    assert [text.endswith("stands there twice; it is dropped") for text in said] == [True]
