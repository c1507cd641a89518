"""Common corruptions as a part of evaluation: what is measured, kept, taken over and refused."""

import shutil

import numpy as np
import pytest
import torch
from rich.console import Console

from hydraprune.core.errors import DataError, SpecError
from hydraprune.core.files import read_json, write_json
from hydraprune.evaluation import clean_accuracy, corruptions
from hydraprune.evaluation.corruptions import BENCHMARK, offered
from hydraprune.recipes.evaluate import Evaluate
from hydraprune.recipes.runner import run
from hydraprune.recipes.stages import Bench
from hydraprune.runs.checkpoint import load, open_checkpoint
from recipes.tiny import tiny

ALONE = "stages.evaluate={kind: evaluate, of: [pretrain, finetune], samples: 40, attacks: [], corruptions: true}"


def refuse(*arguments, **settings):
    raise AssertionError("nothing is left to do")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A run that measured corruptions alone, and its records. Not to be changed."""
    out = tmp_path_factory.mktemp("ran") / "run"
    return out, run(tiny(ALONE), out)


@pytest.fixture
def measured(ran, tmp_path):
    """Measures the pre-trained network of a copy of the run."""
    recipe = tiny(ALONE)
    shutil.copytree(ran[0], tmp_path / "run")

    def call(**settings):
        stage = Evaluate.parse({"samples": 40, **settings}, "here")
        bench = Bench(recipe, recipe.data.load(), recipe.trainer.machine(), Console(quiet=True))
        return stage.measured(open_checkpoint(tmp_path / "run" / "pretrain"), bench)

    return call


@pytest.fixture
def folder(tmp_path):
    """The benchmark made of the test images: one file left as it is, the others black."""
    images = tiny().data.load().test.take(40)
    (batch,) = images.batches(40, seed=0).epoch(0)
    clean = (255 * batch.x).round().to(torch.uint8).movedim(1, 3).numpy()
    place = tmp_path / "DIGITS-C"
    place.mkdir()
    np.save(place / "labels.npy", np.tile(batch.y.numpy(), 5))
    for name in BENCHMARK:
        np.save(place / f"{name}.npy", np.tile(clean * (name == "fog"), (5, 1, 1, 1)))
    return place


def test_records_and_files_agree(ran):
    out, records = ran
    assert [record.stage for record in records] == ["pretrain", "finetune"]
    for record in records:
        found = record.corrupted["built-in"]
        assert list(found.accuracy) == offered(1)
        assert (found.samples, record.robust_accuracy) == (40, {})
        file = read_json(out / record.stage / "corruptions.json")
        assert file["corrupted"] == {"built-in": found.plain()}
        assert (file["network"], file["images"]) == (record.network, record.images)
        assert file["made"] == record.made
    assert records[0].corrupted != records[1].corrupted


def test_a_run_is_not_repeated_and_more_images_are(ran, monkeypatch):
    out, records = ran
    monkeypatch.setattr(corruptions, "corruption_accuracy", refuse)
    assert run(tiny(ALONE), out) == records
    with pytest.raises(AssertionError, match="nothing is left"):
        run(tiny(ALONE.replace("40", "41")), out)


def test_later_evaluations_take_over_what_is_known(ran, measured, monkeypatch):
    monkeypatch.setattr(corruptions, "corruption_accuracy", refuse)
    found = measured(attacks=["fgsm"])
    assert found.corrupted == ran[1][0].corrupted
    assert found.robust_accuracy.keys() == {"fgsm"}
    assert measured(corruptions=True, samples=30).corrupted == found.corrupted


@pytest.mark.parametrize("change", [{"network": "another"}, {"images": "others"}])
def test_figures_of_another_network_or_other_images_are_not_taken_over(ran, measured, change, tmp_path):
    path = tmp_path / "run" / "pretrain" / "corruptions.json"
    before = read_json(path)
    write_json(path, before | change)
    assert measured(attacks=["fgsm"]).corrupted == {}
    assert measured(corruptions=True).corrupted == ran[1][0].corrupted
    assert read_json(path) == before


def test_the_folder_of_the_benchmark(ran, measured, folder):
    found = measured(corruptions=str(folder), batch_size=15).corrupted
    assert found.keys() == {"built-in", "DIGITS-C"}
    model, _ = load(ran[0] / "pretrain")
    images = tiny().data.load().test.take(40)
    expected = clean_accuracy(model, images.batches(40, seed=0).epoch(0))
    assert found["DIGITS-C"].accuracy["fog"] == [expected] * 5
    black = found["DIGITS-C"].accuracy["snow"][0]
    assert found["DIGITS-C"].mean_accuracy == pytest.approx((expected + 14 * black) / 15)
    assert {round(40 * black)} <= set(images.labels.bincount().tolist())


def test_a_folder_that_does_not_fit_is_told_before_any_attack(measured, folder, monkeypatch):
    (folder / "frost.npy").unlink()
    monkeypatch.setattr("hydraprune.recipes.measure.evaluate", refuse)
    with pytest.raises(DataError, match=r"frost\.npy is missing"):
        measured(attacks=["fgsm"], corruptions=str(folder))


def test_what_a_stage_may_ask_for():
    assert Evaluate.parse({"corruptions": True}, "here").corrupted_by == "built-in"
    assert Evaluate.parse({"corruptions": "some/CIFAR-10-C/"}, "here").corrupted_by == "CIFAR-10-C"
    assert Evaluate.parse({"attacks": ["fgsm"]}, "here").corrupted_by is None
    with pytest.raises(SpecError, match="nothing to measure; add `attacks"):
        Evaluate.parse({"corruptions": False}, "here")


def test_corruptions_need_no_adversary():
    recipe = tiny(ALONE, "threat=null", "objective=natural")
    assert recipe.threat is None
    with pytest.raises(SpecError, match="has attacks, but the recipe has no threat model"):
        tiny(ALONE, "threat=null", "objective=natural", "stages.evaluate.attacks=[{kind: transfer, origin: pretrain}]")
