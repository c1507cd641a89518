"""What measuring a checkpoint leaves next to it."""

import shutil

import pytest
import torch
from rich.console import Console

from hydraprune.attacks.pgd import PGD
from hydraprune.core.files import read_json
from hydraprune.core.tensors import load_tensors
from hydraprune.core.threat import ThreatModel
from hydraprune.evaluation.records import network_key
from hydraprune.evaluation.verdicts import load
from hydraprune.evaluation.verification import VerifiedImage
from hydraprune.recipes import measure as measuring
from hydraprune.recipes.evaluate import Evaluate
from hydraprune.recipes.runner import run
from hydraprune.recipes.stages import Bench
from hydraprune.runs.checkpoint import open_checkpoint
from recipes.tiny import contents, tiny

QUIET = Console(quiet=True)
ATTACKS = ["fgsm", {"kind": "pgd", "steps": 2, "restarts": 1}, {"kind": "fmn", "steps": 5}]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that learns something, without evaluations. Not to be changed."""
    out = tmp_path_factory.mktemp("trained") / "run"
    few = ["objective=natural", "stages.pretrain.epochs=8", "stages.prune.epochs=0", "stages.prune.pruner=magnitude"]
    values = tiny(*few, "stages.prune.budget.sparsity=0.5", "data.samples=600").plain()
    values["stages"] = values["stages"][:2]
    run(type(tiny()).parse(values, "trained"), out)
    return out, type(tiny()).parse(values, "trained")


@pytest.fixture
def measured(trained, tmp_path):
    """Measures a stage of a copy of the run."""
    shutil.copytree(trained[0], tmp_path / "run")
    recipe = trained[1]

    def call(stage="pretrain", attacks=ATTACKS, samples=60, others=(), recipe=recipe, **settings):
        attacks = [*attacks, *({"kind": "transfer", "origin": name} for name in others)]
        how = Evaluate.parse({"attacks": attacks, "samples": samples, "batch_size": 25, **settings}, "here")
        fabric = recipe.trainer.machine()
        bench = Bench(recipe, recipe.data.load(), fabric, QUIET)
        return how.measured(opened(stage), bench, {name: opened(name) for name in others})

    def opened(name):
        return open_checkpoint(tmp_path / "run" / name)

    return call


def test_the_files_agree_with_the_record(measured, trained, tmp_path):
    record = measured()
    folder, recipe = tmp_path / "run" / "pretrain", trained[1]
    found, origin = load(folder / "verdicts.safetensors")
    tensors, header = load_tensors(folder / "verdicts.safetensors")
    data = recipe.data.load().test
    assert torch.equal(found.label, data.labels[:60])
    assert {name: (value.dtype, len(value)) for name, value in tensors.items()} == {
        "label": (torch.int64, 60), "prediction": (torch.int64, 60), "confidence": (torch.float32, 60),
        "survived/fgsm": (torch.bool, 60), "survived/pgd-2x1": (torch.bool, 60), "survived/fmn-5": (torch.bool, 60),
        "distance/fmn-5": (torch.float32, 60),
    }  # fmt: skip
    assert (header["threat"], header["samples"]) == (recipe.threat.plain(), 60)
    assert origin.made == record.made
    assert (origin.network, origin.images) == (record.network, record.images)
    assert origin.made.keys() == {"fgsm", "pgd-2x1", "fmn-5"}
    assert record.clean_accuracy == found.clean_accuracy > 0.5
    assert record.robust_accuracy == {**found.robust_accuracy, "worst-case": found.worst_case.double().mean()}
    assert record.macs == record.macs_dense > 0

    tensors, header = load_tensors(folder / "examples.safetensors")
    assert tensors.keys() == {"image", "adversarial", "label", "prediction", "adversarial_prediction"}
    assert record.robust_accuracy[header["attack"]] == min(found.robust_accuracy.values())
    assert header["eps"] == recipe.threat.eps
    assert tensors["image"].shape == tensors["adversarial"].shape

    curve = read_json(folder / "curves.json")["security"]["fmn-5"]
    assert curve["accuracy"][0] == record.clean_accuracy
    assert curve["accuracy"] == sorted(curve["accuracy"], reverse=True)
    at = [round(eps, 9) for eps in curve["eps"]].index(round(recipe.threat.eps, 9))
    assert curve["accuracy"][at] == record.robust_accuracy["fmn-5"]
    assert not (folder / "evaluation.state.safetensors").exists()


def test_pruning_saves_operations(measured):
    dense, pruned = measured("pretrain", ["fgsm"]), measured("prune", ["fgsm"])
    assert dense.macs == dense.macs_dense == pruned.macs_dense
    assert pruned.macs == pytest.approx(0.5 * dense.macs, rel=0.01)


def test_evaluations_join_image_by_image(measured, monkeypatch):
    whole = measured("pretrain")
    again = measured("prune", ATTACKS[:1])
    assert "worst-case" not in again.robust_accuracy
    joined = measured("prune", ATTACKS[1:])
    monkeypatch.setattr(PGD, "search", refuse)
    once_more = measured("prune", ATTACKS)
    timeless = {"seconds": 0}
    assert once_more.model_copy(update=timeless) == joined.model_copy(update=timeless)
    assert list(joined.robust_accuracy) == list(whole.robust_accuracy)


def refuse(*arguments, **settings):
    raise AssertionError("nothing is left to do")


def test_an_attack_with_other_settings_is_run_again(measured):
    first = measured(attacks=[{"kind": "pgd", "steps": 2, "restarts": 1, "step_size": 0.001}])
    second = measured(attacks=[{"kind": "pgd", "steps": 2, "restarts": 1}])
    assert second.robust_accuracy["pgd-2x1"] < first.robust_accuracy["pgd-2x1"]


@pytest.mark.parametrize("step", [1, 4, 8])
def test_a_killed_measurement_goes_on(measured, tmp_path, monkeypatch, step):
    folder, left = tmp_path / "run" / "pretrain", [step]
    saved = measuring.save_verdicts

    def save(path, *arguments, **settings):
        saved(path, *arguments, **settings)
        left[0] -= path.name == "evaluation.state.safetensors"
        if left[0] == 0:
            left[0] = -1
            raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "save_verdicts", save)
    with pytest.raises(KeyboardInterrupt):
        measured()
    assert (folder / "evaluation.state.safetensors").exists()
    assert not (folder / "verdicts.safetensors").exists()
    record = measured()
    found = contents(folder)
    for file in folder.iterdir():
        if file.name in ("verdicts.safetensors", "examples.safetensors", "curves.json"):
            file.unlink()
    assert measured().model_copy(update={"seconds": 0}) == record.model_copy(update={"seconds": 0})
    assert contents(folder) == found


def test_another_network_in_the_folder_starts_afresh(measured, trained, tmp_path):
    measured("pretrain", ["fgsm"])
    folder = tmp_path / "run" / "pretrain"
    for name in ("model.safetensors", "masks.safetensors", "checkpoint.json"):
        shutil.copy(tmp_path / "run" / "prune" / name, folder / name)
    after = measured("pretrain", [ATTACKS[1]])
    assert list(after.robust_accuracy) == ["pgd-2x1"]
    assert after.sparsity > 0


def test_another_threat_has_its_own_folder(measured, trained, tmp_path):
    measured()
    before = contents(tmp_path / "run" / "pretrain")
    other = trained[1].model_copy(update={"threat": ThreatModel(norm="l2", eps=0.5)})
    measured(recipe=other)
    folder = tmp_path / "run" / "pretrain" / "l2-0.5"
    assert load(folder / "verdicts.safetensors")[0].threat == other.threat
    shutil.rmtree(folder)
    assert contents(tmp_path / "run" / "pretrain") == before


def test_images_transfer_between_dense_and_pruned(measured):
    there = measured("prune", ["fgsm"], others=["pretrain"])
    back = measured("pretrain", ["fgsm"], others=["prune"])
    for record, origin in ((there, "pretrain"), (back, "prune")):
        assert record.robust_accuracy[f"transfer-50-from-{origin}"] < record.clean_accuracy


def test_a_recipe_may_transfer_and_a_run_is_not_repeated(tmp_path, monkeypatch):
    recipe = tiny(
        "stages.evaluate.attacks=[fgsm, {kind: transfer, origin: pretrain}, {kind: transfer, origin: finetune}]"
    )
    records = run(recipe, tmp_path)
    for record in records:
        names = {"fgsm", "transfer-50-from-pretrain", "transfer-50-from-finetune", "worst-case"}
        assert set(record.robust_accuracy) == names
    monkeypatch.setattr(measuring, "evaluate", refuse)
    assert run(recipe, tmp_path) == records


def test_checks_use_verdicts_and_proofs_that_are_there(measured, trained, tmp_path, monkeypatch):
    measured(attacks=ATTACKS[1:2])
    folder, (_, recipe) = tmp_path / "run" / "pretrain", trained
    broken = load(folder / "verdicts.safetensors")[0].survived["pgd-2x1"].logical_not().nonzero()[0].item()
    key = network_key(open_checkpoint(folder).network())
    base = {"label": 0, "prediction": 0, "seconds": 0.0, "made": "", "image": "", "network": key}
    lines = [VerifiedImage(index=index, verified=index == broken, **base) for index in range(60)]
    lines.append(VerifiedImage(index=60, verified=True, **base | {"network": "an earlier one"}))
    text = "".join(f"{line.model_dump_json()}\n" for line in lines)
    (folder / f"verified-ibp,eps={recipe.threat.eps:g}.jsonl").write_text(text + '{"index": 61, "ver')
    seen = {}

    def noted(model, batch, threat, *, seed, verdicts, verified):
        seen.update(count=len(batch.x), verdicts=verdicts, verified=verified)
        return []

    monkeypatch.setattr(measuring, "run_checks", noted)
    bench = Bench(recipe, recipe.data.load(), recipe.trainer.machine(), QUIET)
    found, path = measuring.check(open_checkpoint(folder), 30, bench)
    assert (found, path, seen["count"]) == ([], folder / "checks.json", 30)
    assert list(seen["verdicts"].survived) == ["pgd-2x1"]
    assert seen["verified"].nonzero().flatten().tolist() == [broken]
    assert len(seen["verified"]) == 60


def test_damaged_curves_stop_nothing(measured, tmp_path):
    path = tmp_path / "run" / "pretrain" / "curves.json"
    path.write_text('"x"')
    measured(attacks=ATTACKS[2:])
    assert read_json(path).keys() == {"security"}
