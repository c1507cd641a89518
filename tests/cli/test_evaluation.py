"""`hydraprune evaluate`, `check` and `benchmark`: what they print and write, and how they fail."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from hydraprune.attacks.ensemble import Ensemble
from hydraprune.attacks.fgsm import FGSM
from hydraprune.evaluation import checks
from hydraprune.evaluation.verdicts import load
from hydraprune.recipes import benchmark as benchmarks
from hydraprune.recipes.runner import run
from hydraprune.runs.checkpoint import Checkpoint, save
from hydraprune.runs.checkpoint import load as load_network
from recipes.tiny import tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A dense network that learned something, and a pruned one."""
    out = tmp_path_factory.mktemp("trained") / "run"
    few = ["objective=natural", "stages.pretrain.epochs=8", "stages.prune.epochs=0", "stages.prune.pruner=magnitude"]
    values = tiny(*few).plain()
    values["data"]["samples"] = 600
    values["stages"] = values["stages"][:2]
    run(type(tiny()).parse(values, "trained"), out)
    return out


@pytest.fixture
def command(command, trained):
    """The same beside a run folder."""
    shutil.copytree(trained, "run")
    return command


def written(file):
    return json.loads(Path(file).read_text())


def test_evaluations_of_one_network_join(command):
    code, text, err = command("evaluate", "run/pretrain", "--attacks", "fgsm,fmn", "--samples", "30")
    assert (code, err) == (0, "")
    assert "written to run/pretrain/evaluation.json" in text
    first = written("run/pretrain/evaluation.json")
    assert first["robust_accuracy"].keys() == {"fgsm", "fmn-100", "worst-case"}
    assert command("evaluate", "run/pretrain", "--attacks", "apgd", "--samples", "10")[0] == 0
    second = written("run/pretrain/evaluation.json")
    assert second["robust_accuracy"].keys() == {*first["robust_accuracy"], "apgd-ce-100x1"}
    assert second["robust_accuracy"]["fgsm"] == first["robust_accuracy"]["fgsm"]
    assert (second["samples"], second["robust_samples"]) == (30, {"apgd-ce-100x1": 10, "worst-case": 10})
    found, _ = load(Path("run/pretrain/verdicts.safetensors"))
    assert second["robust_accuracy"]["worst-case"] == found.worst_case.double().mean()
    assert written("run/pretrain/curves.json")["security"].keys() == {"fmn-100"}


def test_tables_and_page_show_what_was_measured_later_until_the_weights_are_others(command):
    command("evaluate", "run/prune", "--attacks", "fgsm", "--samples", "20")
    command("evaluate", "run/prune", "--attacks", "fgsm", "--samples", "20", "--set", "threat.eps=0.2")
    robust = written("run/prune/evaluation.json")["robust_accuracy"]["fgsm"]
    assert command("table", "run", "--out", "before")[0] == 0
    (row,) = written("before.json")
    assert row["figures"]["fgsm"]["values"] == [robust]
    assert command("report", "run", "--out", "before.html")[0] == 0
    assert "ℓ∞ 0.1 (recipe)" in Path("before.html").read_text()
    assert "fgsm in ℓ∞" in Path("before.html").read_text()

    model, meta = load_network("run/prune")
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    save("run/prune", model, meta)
    command("evaluate", "run/pretrain", "--attacks", "fgsm", "--samples", "20")
    code, said, _ = command("table", "run", "--out", "after")
    assert code == 0
    assert said.count("left out: run/prune/") == 2
    assert [row["stage"] for row in written("after.json")] == ["pretrain"]
    assert command("report", "run", "--out", "after.html")[0] == 0
    page = Path("after.html").read_text()
    assert page.count("was measured on other weights than the checkpoint&#39;s") == 2
    assert "ℓ∞ 0.1 (recipe)" not in page


def test_images_of_another_checkpoint_are_tried(command):
    code, _, err = command("evaluate", "run/prune", "--attacks", "fgsm", "--samples", "20",
                           "--transfer-from", "run/pretrain")  # fmt: skip
    assert (code, err) == (0, "")
    assert "transfer-50-from-pretrain" in written("run/prune/evaluation.json")["robust_accuracy"]


def test_common_corruptions_alone_and_what_was_measured_before(command):
    assert command("evaluate", "run/pretrain", "--attacks", "fgsm", "--samples", "20")[0] == 0
    before = written("run/pretrain/evaluation.json")
    code, text, err = command("evaluate", "run/pretrain", "--corruptions", "true", "--samples", "20")
    assert (code, err) == (0, "")
    after = written("run/pretrain/evaluation.json")
    assert after["robust_accuracy"] == before["robust_accuracy"]
    found = after["corrupted"]["built-in"]
    assert found == written("run/pretrain/corruptions.json")["corrupted"]["built-in"]
    assert f"corruptions (built-in) {found['mean_accuracy']:.3f}" in text
    code, _, err = command("evaluate", "run/pretrain", "--corruptions", "CIFAR-10-C")
    assert code == 2
    assert err.startswith("error: CIFAR-10-C/labels.npy is missing; give a folder like CIFAR-10-C")


def test_an_attack_in_the_wrong_norm_is_refused(command):
    code, _, err = command("evaluate", "run/pretrain", "--attacks", "ddn", "--samples", "20")
    assert (code, err) == (2, "error: attack 'ddn-100' works in l2, the threat is linf\n")
    code, _, err = command("evaluate", "run/pretrain", "--attacks", "ddn", "--samples", "9", "--set", "threat.norm=l2")
    assert (code, err) == (0, "")
    assert Path("run/pretrain/l2-0.1/evaluation.json").exists()


@pytest.fixture
def _short(monkeypatch):
    monkeypatch.setattr(checks, "QUERIES", 60)
    monkeypatch.setattr(checks, "STEPS", (5, 10, 20))
    monkeypatch.setattr(checks, "RESTARTS", (1, 2))
    monkeypatch.setattr(checks, "SURFACE", 5)


@pytest.mark.usefixtures("_short")
def test_check_prints_a_line_for_each_and_writes_them(command):
    command("evaluate", "run/pretrain", "--attacks", "pgd", "--samples", "20")
    code, text, err = command("check", "run/pretrain", "--samples", "30")
    assert (code, err) == (0, "")
    found = written("run/pretrain/checks.json")
    assert [one["name"] for one in found] == [
        "deterministic", "gradients", "radius", "black-box", "steps", "restarts", "loss-surface", "order",
    ]  # fmt: skip
    assert all(one.keys() == {"name", "passed", "found", "expected", "why", "figures"} for one in found)
    assert all(one["passed"] for one in found)
    assert all(f"pass {one['name']}: {one['found']}" in text for one in found)
    assert text.endswith("written to run/pretrain/checks.json\n")


class Masked(nn.Sequential):
    def forward(self, x):
        return super().forward(torch.round(4 * x) / 4)


@pytest.mark.usefixtures("_short")
def test_check_fails_where_gradients_are_hidden(command, monkeypatch):
    original = Checkpoint.network
    monkeypatch.setattr(Checkpoint, "network", lambda self: Masked(original(self)))
    code, text, _ = command("check", "run/pretrain", "--samples", "30")
    assert code == 1
    assert "FAIL gradients: 100.0% of the images have no gradient" in text
    assert "expected: every image has a gradient; without a gradient" in text
    assert not written("run/pretrain/checks.json")[1]["passed"]


def test_benchmark_writes_a_claim(command, monkeypatch):
    for name, value in {"TRIALS": 2, "TUNING_STEPS": 2, "FMN_STEPS": 3}.items():
        monkeypatch.setattr(benchmarks, name, value)
    monkeypatch.setattr(benchmarks, "AutoAttack", FGSM)
    monkeypatch.setattr(benchmarks, "Ensemble", lambda: Ensemble(attacks=[FGSM()]))
    code, text, err = command("benchmark", "run/prune", "--name", "HYDRA_Sehwag2020Hydra", "--samples", "10")
    assert (code, err) == (0, "")
    assert "HYDRA_Sehwag2020Hydra_cnn_digits_digits_US_90" in text
    assert "not eligible: cnn_digits is not part of the benchmark, which has resnet18 and vgg16_bn" in text
    assert text.endswith("written to run/prune/claim.json\n")
    assert written("run/prune/claim.json")["sparsity"] == pytest.approx(0.9, abs=1e-3)
    command("report", "run", "--out", "page.html")
    page = Path("page.html").read_text()
    assert '<section id="claims">' in page
    assert '<th scope="row">HYDRA_Sehwag2020Hydra_cnn_digits_digits_US_90</th>' in page


@pytest.mark.parametrize("name", ["evaluate", "check", "benchmark"])
def test_a_folder_without_a_network_is_one_error(command, name):
    code, _, err = command(name, "gone")
    assert code == 2
    assert err.startswith("error: gone holds no finished checkpoint")
