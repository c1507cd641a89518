"""Claims: the benchmark's protocol and naming, with what is measured and not what is said."""

import pyautoattack
import pytest
import torch
from rich.console import Console
from torch import nn

from hydraprune.attacks.fmn import FMN
from hydraprune.core.errors import SpecError
from hydraprune.core.files import read_json
from hydraprune.core.threat import ThreatModel
from hydraprune.data import SOURCES
from hydraprune.evaluation.verdicts import load
from hydraprune.masks.source import FixedMask
from hydraprune.masks.view import MaskView
from hydraprune.nets import Net
from hydraprune.recipes import benchmark as benchmarks
from hydraprune.recipes.runner import run
from hydraprune.recipes.stages import Bench
from hydraprune.runs.checkpoint import open_checkpoint
from hydraprune.runs.meta import Meta
from recipes.tiny import tiny

QUIET = Console(quiet=True)


@pytest.fixture
def _short(monkeypatch):
    chosen = pyautoattack.AutoAttack._set_version

    def shortened(self, version):
        chosen(self, version)
        self.square.n_queries = 20
        self.apgd.n_iter = self.apgd_targeted.n_iter = self.fab.n_iter = 5

    monkeypatch.setattr(pyautoattack.AutoAttack, "_set_version", shortened)
    for name, value in {"TRIALS": 3, "TUNING_STEPS": 4, "FMN_STEPS": 6}.items():
        monkeypatch.setattr(benchmarks, name, value)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network of the tiny recipe, pruned to 90 %."""
    out = tmp_path_factory.mktemp("trained") / "run"
    few = ["objective=natural", "stages.pretrain.epochs=2", "stages.prune.epochs=0", "stages.prune.pruner=magnitude"]
    values = tiny(*few).plain()
    values["data"]["samples"] = None
    values["stages"] = values["stages"][:2]
    recipe = type(tiny()).parse(values, "trained")
    run(recipe, out)
    return out / "prune", recipe


@pytest.mark.usefixtures("_short")
def test_a_claim_says_what_was_measured(trained, monkeypatch):
    folder, recipe = trained
    data, fabric, tuned_on = recipe.data.load(), recipe.trainer.machine(), []
    search = benchmarks.tuned

    def noted(model, batch, threat, **settings):
        tuned_on.append(batch.x)
        return search(model, batch, threat, **settings)

    monkeypatch.setattr(benchmarks, "tuned", noted)
    bench = Bench(recipe, data, fabric, QUIET)
    claim, path = benchmarks.benchmark(open_checkpoint(folder), bench, name="HYDRA_Test", samples=12)
    assert read_json(path) == claim
    assert claim["name"] == "HYDRA_Test_cnn_digits_digits_US_90"
    assert claim["sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert not claim["eligible"]
    assert [reason.split()[0] for reason in claim["reasons"]] == ["cnn_digits", "digits", "AutoAttack"]

    official, strict = (load(folder / f"linf-{eps:.6g}" / "verdicts.safetensors")[0] for eps in (0.031, 8 / 255))
    assert (official.threat, strict.threat) == (ThreatModel(eps=0.031), ThreatModel(eps=8 / 255))
    autoattack = claim["benchmark"]["autoattack"]
    assert autoattack == {"accuracy": official.robust_accuracy["autoattack"], "samples": 12, "eps": 0.031}
    assert claim["benchmark"]["clean_accuracy"] == official.clean_accuracy
    attacks = claim["strict"]["attacks"]
    assert attacks.keys() == {"ensemble-pgd-50x10+autoattack", "fmn-6-dlr", "worst-case"}
    assert attacks["worst-case"]["accuracy"] == strict.worst_case.double().mean() <= autoattack["accuracy"]

    images = data.test
    assert torch.equal(tuned_on[0], next(iter(images.take(64).batches(64, seed=0).epoch(0))).x)
    found = claim["benchmark"]["fmn"]
    assert (found["samples"], found["eps"]) == (128, 8 / 255)
    far = sum(length > 8 / 255 for length in claim["benchmark"]["distances"])
    assert found["accuracy"] == pytest.approx(far / 128)
    assert FMN(**claim["benchmark"]["fmn_settings"]).loss == "dlr"


def test_protocol():
    assert (benchmarks.TRIALS, benchmarks.TUNED_ON, benchmarks.TUNING_STEPS) == (32, 64, 100)
    assert (benchmarks.FMN_FIRST, benchmarks.FMN_IMAGES, benchmarks.FMN_STEPS) == (2048, 128, 200)
    assert (benchmarks.AUTOATTACK.eps, benchmarks.IMAGES) == (0.031, 10_000)


def test_too_few_images_are_refused(trained):
    folder, recipe = trained
    data = recipe.model_copy(update={"data": recipe.data.model_copy(update={"samples": 100})}).data.load()
    short = type(data)(data.train, data.validation, data.test.take(100), data.classes)
    bench = Bench(recipe, short, recipe.trainer.machine(), QUIET)
    with pytest.raises(SpecError, match="100 test images are too few"):
        benchmarks.benchmark(open_checkpoint(folder), bench, samples=5)


def masked(kept):
    """A net whose masks keep what `kept` says of each weight."""
    net = nn.Sequential(nn.Conv2d(10, 100, 3), nn.Flatten(), nn.Linear(100, 10))
    masks = {name: FixedMask(kept(weight)) for name, weight in MaskView(net).weights().items()}
    MaskView(net).attach(masks)
    return net


def loose(share):
    return lambda weight: (torch.arange(weight.numel()) % 100 < 100 * share).view(weight.shape)


def rows(share):
    return lambda weight: (
        (torch.arange(len(weight)) % 10 < 10 * share).view(-1, *[1] * (weight.dim() - 1))
        & (torch.ones_like(weight).bool())
    )


def columns(share):
    return lambda weight: rows(share)(weight.transpose(0, 1)).transpose(0, 1)


@pytest.mark.parametrize(
    ("kept", "name", "reasons"),
    [
        (loose(0.1), "R18_CIFAR10_US_90", 0),
        (loose(0.05), "R18_CIFAR10_US_95", 0),
        (loose(0.01), "R18_CIFAR10_US_99", 0),
        (loose(0.2), "R18_CIFAR10_US_80.0", 1),
        (rows(0.5), "R18_CIFAR10_S_50", 0),
        (columns(0.1), "R18_CIFAR10_S_90", 0),
    ],
)
def test_names_follow_masks_and_counts(tmp_path, kept, name, reasons):
    data = SOURCES.make({"kind": "cifar10", "path": str(tmp_path)}, "data")
    recipe = tiny().model_copy(update={"net": Net(kind="resnet18"), "data": data})
    key, found = benchmarks._key("M_A2020T", masked(kept), Meta(pruner="hydra"), recipe)
    assert key == f"M_A2020T_{name}"
    assert len(found) == reasons
    assert benchmarks._key("M", masked(kept), Meta(), recipe)[1][-1] == "it is not pruned"
