"""The commands, as their users call them: what they print, and how they fail."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from hydraprune.core.errors import HydrapruneError
from hydraprune.nets import Net
from hydraprune.recipes import library
from hydraprune.recipes.runner import run
from recipes.tiny import TINY, kept, tiny


@pytest.fixture
def succeeds(command):
    def call(*arguments):
        code, out, err = command(*arguments)
        assert (code, err) == (0, "")
        return out

    return call


@pytest.fixture
def fails(command):
    """The single line on standard error of a command that ends with exit code 2."""

    def call(*arguments):
        code, _, err = command(*arguments)
        assert code == 2
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        return err.removeprefix("error: ").rstrip()

    return call


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of the tiny recipe. Not to be changed."""
    out = tmp_path_factory.mktemp("finished") / "run"
    run(tiny(), out)
    return out


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    return file


def test_list(succeeds):
    text = succeeds("list")
    for name in [
        *library.names(),
        "cnn_digits",
        "timm:NAME",
        "torchvision:NAME",
        "zoo:digits-cnn_digits-hydra-95",
        "cifar10",
        "trades",
        "hydra",
        "erk",
        "filter",
        "autoattack",
    ]:
        assert f"  {name} " in text
    assert text.splitlines()[0] == "recipes"
    for line in text.splitlines():
        if line.startswith("  ") and line.split()[0] in library.names():
            assert library.load_recipe(line.split()[0]).about in line


def test_show_prints_a_recipe_that_can_be_run_again(succeeds, tmp_path):
    text = succeeds("show", "digits-cnn_digits-trades", "--set", "threat.eps=8/255", "--set", "seed=3")
    expected = library.load_recipe("digits-cnn_digits-trades", ["threat.eps=8/255", "seed=3"])
    assert text == library.dump(expected)
    (tmp_path / "mine.yaml").write_text(text)
    assert succeeds("show", "mine.yaml") == text


def test_run_prints_the_table_and_draws_it(succeeds, recipe):
    text = succeeds("run", recipe, "--out", "runs/one", "--set", "data.samples=150")
    out = Path("runs/one")
    records = json.loads((out / "results.json").read_text())
    assert [record["stage"] for record in records] == ["pretrain", "finetune"]
    for stage in ("pretrain", "prune", "finetune"):
        assert f"{stage}: loss " in text
    row = next(line for line in text.splitlines() if "│ hydra" in line)
    stored, total = kept(out / "finetune")
    assert f"{stored:,} of {total:,}" in row
    assert f"{100 * records[1]['clean_accuracy']:.1f}" in row
    assert text.splitlines()[-1] == "written to runs/one"
    assert (out / "robust_accuracy.png").read_bytes().startswith(b"\x89PNG")
    again = succeeds("run", recipe, "--out", "runs/one", "--set", "data.samples=150")
    assert "pretrain: done before" in again
    assert "finetune: measured before" in again
    assert row in again.splitlines()
    assert "loss" not in again


PRUNE = ["--set", "data.samples=100", "--set", "stages.finetune.epochs=1"]
PRUNE += ["--set", "objective.steps=1", "--set", "stages.evaluate={kind: evaluate, attacks: [fgsm], samples: 20}"]


def test_prune_starts_from_given_weights(succeeds, tmp_path):
    torch.manual_seed(5)
    dense = Net(kind="cnn_digits").build(10, 1, 8)
    save_file(dense.state_dict(), tmp_path / "mine.safetensors")
    args = ["--net", "cnn_digits", "--data", "digits", "--weights", "mine.safetensors", "--eps", "0.1", "--out", "run"]
    succeeds("prune", *args, "--sparsity", "0.8", "--set", "stages.prune.epochs=1", *PRUNE)
    assert {entry.name for entry in Path("run").iterdir() if entry.is_dir()} == {"prune", "finetune", "tensorboard"}
    pruned, start = load_file("run/prune/model.safetensors"), dense.state_dict()
    left = pruned["0.weight"] != 0
    assert torch.equal(pruned["0.weight"][left], start["0.weight"][left])
    assert left.sum().item() == left.numel() - int(0.8 * left.numel())
    (record,) = json.loads(Path("run/results.json").read_text())
    assert (record["pruner"], record["threat"]) == ("hydra", {"norm": "linf", "eps": 0.1})
    assert record["sparsity"] == pytest.approx(0.8, abs=1e-3)


def test_prune_takes_a_network_of_the_users_own_and_trains_it_first(succeeds, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "nets.py").write_text(
        "from torch import nn\n"
        "def narrow(num_classes, in_channels, width=4):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, width, 3), nn.ReLU(), nn.Flatten(),\n"
        "                         nn.Linear(36 * width, num_classes))\n"
    )
    args = ["--net", "mine.nets:narrow", "--data", "digits", "--eps", "8/255", "--out", "run", "--pruner", "magnitude"]
    args += ["--objective", "pgd", "--set", "net.options.width=3", "--set", "stages.pretrain.epochs=1"]
    succeeds("prune", *args, *PRUNE)
    written = library.load_recipe("run/recipe.yaml")
    assert (written.name, written.net.options) == ("prune-mine.nets-narrow", {"width": 3})
    assert [stage.name for stage in written.stages] == ["pretrain", "prune", "finetune", "evaluate"]
    assert load_file("run/finetune/model.safetensors")["0.weight"].shape == (3, 1, 3, 3)
    (record,) = json.loads(Path("run/results.json").read_text())
    assert (record["pruner"], record["threat"]["eps"]) == ("magnitude", 8 / 255)
    sys.modules.pop("mine.nets")
    sys.modules.pop("mine")


def test_prune_has_the_papers_schedule(command, monkeypatch):
    seen = []
    monkeypatch.setattr("hydraprune.recipes.runner.run", lambda recipe, out, console: seen.append(recipe))
    code, _, _ = command("prune", "--net", "wrn_28_4", "--data", "cifar10", "--out", "run", "--normalize", "cifar10")
    assert code == 0
    (recipe,) = seen
    assert [(s.name, s.over, s.epochs, s.optim.lr) for s in recipe.stages[:3]] == [
        ("pretrain", "weights", 100, 0.1), ("prune", "scores", 20, 0.1), ("finetune", "weights", 100, 0.01),
    ]  # fmt: skip
    assert (recipe.objective.kind, recipe.threat.eps, recipe.stages[1].budget.sparsity) == ("trades", 8 / 255, 0.9)
    assert recipe.net.normalize is not None


def test_evaluate_measures_a_checkpoint_again(succeeds, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    text = succeeds("evaluate", "run/finetune", "--attacks", "fgsm", "--samples", "40")
    written = json.loads(Path("run/finetune/evaluation.json").read_text())
    before = json.loads((finished / "results.json").read_text())[1]
    assert written["robust_accuracy"] == before["robust_accuracy"]
    for key in ("clean_accuracy", "kept", "total", "pruner", "samples", "threat"):
        assert written[key] == before[key]
    assert f"clean {written['clean_accuracy']:.3f}, fgsm" in text
    assert "written to run/finetune/evaluation.json" in text
    succeeds("evaluate", "run/finetune", "--attacks", "fgsm", "--samples", "40", "--set", "threat.eps=0")
    written = json.loads(Path("run/finetune/linf-0/evaluation.json").read_text())
    assert written["robust_accuracy"] == {"fgsm": written["clean_accuracy"]}


def test_table_of_several_runs(succeeds, finished, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    records = json.loads((finished / "results.json").read_text())
    for record in records:
        record |= {"clean_accuracy": 1.0, "network": "of another seed"}
        del record["digest"]
    shutil.copy(finished / "recipe.yaml", other)
    (other / "results.json").write_text(json.dumps(records))
    text = succeeds("table", finished, other, "--out", "tables/tiny-0.9")
    mean = 50 * (1 + json.loads((finished / "results.json").read_text())[1]["clean_accuracy"])
    assert f"{mean:.1f} ± " in text
    assert sorted(file.name for file in Path("tables").iterdir()) == [
        "tiny-0.9.json", "tiny-0.9.md", "tiny-0.9.png",
    ]  # fmt: skip
    assert f"| {mean:.1f} ± " in Path("tables/tiny-0.9.md").read_text()
    assert json.loads(Path("tables/tiny-0.9.json").read_text())[1]["runs"] == 2
    assert Path("tables/tiny-0.9.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["show", "digit-trades"],
            "unknown recipe or study 'digit-trades'; did you mean 'digits-demo'? (or give a file NAME.yaml)",
        ),
        (["run", "nothing.yaml", "--out", "x"], "recipe or study nothing.yaml is missing"),
        (
            ["run", "digits-cnn_digits-trades", "--out", "x", "--set", "stages.prune.epoch=1"],
            "digits-cnn_digits-trades.stages.1: unknown key 'epoch'; did you mean 'epochs'?",
        ),
        (
            ["run", "digits-cnn_digits-trades", "--out", "x", "--set", "threat.eps=8"],
            "digits-cnn_digits-trades.threat: eps 8 is above 1; pixels lie in [0, 1], so write 8/255",
        ),
        (
            ["prune", "--net", "cnn_digits", "--data", "digits", "--out", "x", "--eps", "-1"],
            "prune.threat.eps: Input should be greater than or equal to 0 (got -1.0)",
        ),
        (
            ["prune", "--net", "cnn_digits", "--data", "digits", "--out", "x", "--sparsity", "1.0"],
            "prune.stages.1.budget.sparsity: Input should be less than 1 (got '1.0')",
        ),
        (
            ["prune", "--net", "cnn_digit", "--data", "digits", "--out", "x"],
            "prune.net.kind: unknown net 'cnn_digit'; did you mean 'cnn_digits'? (or timm:NAME, torch",
        ),
        (
            ["prune", "--net", "mine:net", "--data", "digits", "--out", "x"],
            "net 'mine:net': No module named 'mine'; install the package or correct its name",
        ),
        (
            ["run", "digits-cnn_digits-trades", "--out", "x", "--set", "data={kind: cifar10, path: gone}"],
            "data.path 'gone' is not a folder; give one with train*.parquet and test*.parquet in it",
        ),
        (
            ["run", "digits-cnn_digits-trades", "--out", "x", "--set", "data={kind: images, path: gone}"],
            "gone/train is not a folder; data.path needs train/CLASS/*.jpg and test/CLASS/*.jpg (or val)",
        ),
        (
            ["prune", "--net", "cnn_digits", "--data", "digits", "--weights", "gone.pth", "--out", "x"],
            "gone.pth: no such file; give the path of a .safetensors, .pth, .pt or .tar checkpoint",
        ),
        (["evaluate", "gone"], "gone holds no finished checkpoint (no checkpoint.json); give a folder such as RUN"),
        (["table", "gone"], "there is no gone; correct the path"),
        (["table", "."], "results.json is missing"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(fails, arguments, complaint):
    assert complaint in fails(*arguments)


def test_an_attack_that_does_not_exist(fails, finished):
    complaint = fails("evaluate", finished / "finetune", "--attacks", "fgsm,pdg")
    assert complaint == "evaluate.attacks.1: unknown attack 'pdg'; did you mean 'pgd'?"


def test_a_diverging_loss_keeps_what_was_earned(fails, succeeds, recipe):
    """The stages before it, and the epochs before it."""
    complaint = fails("run", recipe, "--out", "run", "--set", "stages.finetune.optim.lr=1e30")
    assert complaint.startswith(("the loss is nan at step ", "the loss is inf at step "))
    assert "lower the learning rate" in complaint
    for stage in ("pretrain", "prune"):
        assert Path(f"run/{stage}/checkpoint.json").exists()
    assert not Path("run/finetune/checkpoint.json").exists()
    assert "another recipe" in fails("run", recipe, "--out", "run")
    succeeds("evaluate", "run/prune", "--attacks", "fgsm", "--samples", "10")


def test_a_corrupt_checkpoint(fails, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    file = tmp_path / "run" / "finetune" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "run/finetune/model.safetensors is corrupt" in fails("evaluate", "run/finetune")
    shutil.rmtree(tmp_path / "run" / "finetune")
    (tmp_path / "run" / "prune" / "checkpoint.json").write_text("{")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    assert "run/prune/checkpoint.json is unreadable" in fails("run", "tiny.yaml", "--out", "run")
    assert (tmp_path / "run" / "pretrain" / "model.safetensors").exists()


def test_corrupt_weights(fails, tmp_path):
    (tmp_path / "mine.safetensors").write_bytes(b"nothing of the kind")
    args = ["--net", "cnn_digits", "--data", "digits", "--weights", "mine.safetensors", "--out", "run"]
    assert "mine.safetensors is damaged" in fails("prune", *args)


def test_a_network_without_prunable_layers(fails, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "hollow.py").write_text(
        "from torch import nn\n"
        "def pooled(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.AdaptiveAvgPool1d(num_classes))\n"
    )
    complaint = fails("prune", "--net", "hollow:pooled", "--data", "digits", "--out", "run")
    assert complaint == "Sequential has no convolution, linear layer or attention, so there is nothing to prune"
    sys.modules.pop("hollow")


def test_a_network_for_other_images(fails, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "wide.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))\n"
    )  # fmt: skip
    assert "wide:net" in fails("prune", "--net", "wide:net", "--data", "digits", "--out", "run")
    sys.modules.pop("wide")


def test_an_error_of_several_lines_is_one_line(fails, monkeypatch):
    def failing(recipe, out, console):
        raise HydrapruneError("attack 'x' failed:\nRuntimeError\n  at 5")

    monkeypatch.setattr("hydraprune.recipes.runner.run", failing)
    assert fails("run", "digits-cnn_digits-trades", "--out", "x") == "attack 'x' failed: RuntimeError   at 5"


def test_an_out_that_cannot_be_written(fails, recipe, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write into file/run: Not a directory" in fails("run", recipe, "--out", "file/run")
    assert "cannot write into file: " in fails("study", "seeds", "--out", "file")
    assert "the folder to write into has no name" in fails("run", recipe, "--out", "")
    assert "the file to write has no name" in fails("report", tmp_path, "--out", "")
    assert "File name too long" in fails("run", recipe, "--out", "x" * 300)


def test_usage_mistakes_are_explained_with_exit_code_two(command):
    for arguments in (["run", "digits-cnn_digits-trades"], ["prume"], ["list", "--all"]):
        code, _, err = command(*arguments)
        assert code == 2
        assert "Traceback" not in err
        assert "Usage: " in err


def test_the_installed_command(tmp_path):
    """As a process of its own: a good line, and a bad one."""
    script = Path(sys.executable).with_name("hydraprune")
    if not script.exists():
        pytest.skip("the command is not installed beside this interpreter")
    settings = {"cwd": tmp_path, "capture_output": True, "text": True, "env": {**os.environ, "COLUMNS": "200"}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    good = subprocess.run([script, "run", "tiny.yaml", "--out", "run"], **settings)
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.endswith("written to run\n")
    bad = subprocess.run([script, "run", "tiny.yaml", "--out", "run", "--set", "sead=1"], **settings)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == "error: no setting or variable 'sead'; did you mean 'seed'?\n"
