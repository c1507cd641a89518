"""What a command finds where another is at work, and what one leaves that could not start."""

import time

import pytest
import yaml

from hydraprune.recipes.runner import run
from hydraprune.runs.lock import LOCK
from recipes.tiny import TINY, contents, tiny
from runs.held import another


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    return file


def test_a_folder_in_which_another_runs_is_refused(command, recipe, tmp_path):
    with another(tmp_path / "run") as process:
        code, out, err = command("run", recipe, "--out", "run")
        assert (code, out) == (2, "")
        assert err.startswith(f"error: run is being written by process {process.pid} on ")
        assert err.count("\n") == 1
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments", [["evaluate"], ["check"], ["benchmark"], ["verify"], ["certify", "--sigma", "0.25"]]
)
def test_a_checkpoint_that_another_measures_is_refused(command, tmp_path, arguments):
    folder = tmp_path / "run" / "finetune"
    with another(folder) as process:
        code, _, err = command(arguments[0], folder, *arguments[1:])
        assert code == 2
        assert f"is being written by process {process.pid} on " in err
        code, _, err = command(arguments[0], tmp_path / "run" / "other", *arguments[1:])
        assert "holds no finished checkpoint" in err
    assert not (tmp_path / "run").exists()


def test_a_finished_stage_is_measured_while_its_run_goes_on(command, tmp_path):
    run(tiny(), tmp_path / "run")
    with another(tmp_path / "run"), another(tmp_path / "run" / "prune"):
        assert command("evaluate", tmp_path / "run" / "finetune", "--samples", "5")[0] == 0


def test_a_run_waits_for_a_command_that_measures_its_network(command, recipe, tmp_path, monkeypatch):
    values = tiny().plain()
    values["stages"] = values["stages"][:1]
    run(type(tiny()).parse(values, "first"), tmp_path / "run")
    (tmp_path / "run" / "recipe.yaml").unlink()
    with another(tmp_path / "run" / "pretrain") as process:
        monkeypatch.setattr(time, "sleep", lambda seconds: process.kill())
        code, out, _ = command("run", recipe, "--out", "run")
    assert code == 0
    assert f"waiting: run/pretrain is being written by process {process.pid} " in out


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ("data={kind: images}", "data.path is missing"),
        ("net.kind=vgg16_bn", "vgg16_bn cannot take 8x8 images"),
        ("stages.pretrain.optim.lr=1e30", "the loss is"),
    ],
)
def test_a_start_that_failed_leaves_nothing_and_may_be_mended(command, recipe, tmp_path, wrong, complaint):
    code, _, err = command("run", recipe, "--out", "runs/a", "--set", wrong)
    assert code == 2
    assert complaint in err
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_what_was_earned_is_kept_and_named(command, recipe, tmp_path):
    """From the first epoch on."""
    wrong = "stages.prune.optim.lr=1e30"
    code, _, err = command("run", recipe, "--out", "run", "--set", wrong)
    assert (code, "the loss is" in err) == (2, True)
    before = contents(tmp_path / "run")
    assert {"recipe.yaml", "environment.json", "pretrain/checkpoint.json"} <= before.keys()
    assert not (tmp_path / "run" / "prune").exists()
    code, _, err = command("run", recipe, "--out", "run")
    assert (code, "holds a run of another recipe (recipe.yaml differs in stages)" in err) == (2, True)
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize(("started", "devices"), [(2, 1), (1, 2), (4, 2)])
def test_another_number_of_processes_than_the_recipes_is_refused_once(
    command, recipe, tmp_path, monkeypatch, started, devices
):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "0")
    monkeypatch.setenv("WORLD_SIZE", str(started))
    errors = []
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        code, out, err = command("run", recipe, "--out", "run", "--set", f"trainer.devices={devices}")
        assert (code, out) == (2, "")
        errors.append(err)
    message = f"torchrun has started {started} processes, but trainer.devices is {devices}"
    assert errors == [f"error: {message}; use `--set trainer.devices={started}`\n", ""]
    assert not (tmp_path / "run").exists()
