"""A recipe from end to end, and again after every kind of interruption."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from hydraprune import MaskView, Record, load
from hydraprune.core.errors import CheckpointError, PruningError, SpecError, TrainingError
from hydraprune.core.files import read_json, write_json
from hydraprune.core.plain import tensors
from hydraprune.core.seeds import generator
from hydraprune.evaluation import Evaluation
from hydraprune.recipes.library import load_recipe
from hydraprune.recipes.runner import run
from hydraprune.train.hooks import ProgressBar
from hydraprune.train.state import both
from recipes.tiny import contents, kept, tiny


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted, and a copy of its folder before every change to it."""
    out = tmp_path_factory.mktemp("whole") / "run"
    copies = []

    def noted(change):
        def changing(path, *arguments, **settings):
            if path.exists() and out in path.parents:
                copies.append(tmp_path_factory.mktemp("copy") / "run")
                shutil.copytree(out, copies[-1], ignore=shutil.ignore_patterns(".*"))
            return change(path, *arguments, **settings)

        return changing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", noted(Path.replace))
        patch.setattr(Path, "unlink", noted(Path.unlink))
        records = run(tiny(), out)
    return out, records, copies


def test_the_files_of_a_run(whole):
    out, _, _ = whole
    files = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    stages = {f"{stage}/{name}" for stage in ("pretrain", "prune", "finetune") for name in os.listdir(out / stage)}
    curves = {file for file in files if file.startswith("tensorboard/")}
    assert files - curves - stages == {"recipe.yaml", "environment.json", "data.json", "metrics.jsonl", "results.json"}
    assert set(os.listdir(out / "prune")) == {"model.safetensors", "masks.safetensors", "checkpoint.json"}
    for stage in ("pretrain", "finetune"):
        more = set(os.listdir(out / stage)) - set(os.listdir(out / "prune"))
        assert {"verdicts.safetensors"} <= more <= {"verdicts.safetensors", "examples.safetensors"}
    assert {Path(file).parent.name for file in curves} == {"pretrain", "prune", "finetune"}
    assert load_recipe(str(out / "recipe.yaml")) == tiny()


def test_the_environment_is_written_down(whole):
    environment = read_json(whole[0] / "environment.json")
    assert environment.keys() == {"versions", "platform", "device", "processes", "cores", "threads"}
    assert torch.__version__.startswith(environment["versions"]["torch"])
    assert (environment["processes"], environment["threads"]) == (1, 1)


def test_the_metrics_have_one_line_for_each_epoch(whole):
    lines = [json.loads(line) for line in (whole[0] / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["epoch"]) for line in lines] == [
        ("pretrain", 1), ("pretrain", 2), ("prune", 1), ("finetune", 1), ("finetune", 2),
    ]  # fmt: skip
    assert {frozenset(line) for line in lines} == {
        frozenset({
            "stage", "epoch", "loss", "accuracy", "robust_accuracy", "clean_loss", "stability_loss",
            "validation_accuracy", "validation_robust_accuracy", "lr", "seconds", "schema", "digest",
        })
    }  # fmt: skip


def test_the_results_are_records(whole):
    out, records, _ = whole
    written = json.loads((out / "results.json").read_text())
    assert [value.keys() for value in written] == [{*Record.model_fields, "schema", "digest"}] * 2
    assert [Record(**value) for value in written] == records
    dense, pruned = records
    assert (dense.stage, dense.pruner, dense.sparsity, dense.kept) == ("pretrain", None, 0, dense.total)
    assert (pruned.stage, pruned.pruner) == ("finetune", "hydra")
    for record in records:
        assert record.robust_accuracy.keys() == {"fgsm", "pgd-2x1", "worst-case"}
        assert max(record.robust_accuracy.values()) <= record.clean_accuracy
        assert (record.samples, record.threat, record.seed) == (40, tiny().threat, 0)
        assert record.seconds > 0


def test_sparsities_are_those_of_the_files(whole):
    out, (dense, pruned), _ = whole
    for stage, record in (("pretrain", dense), ("finetune", pruned)):
        stored, total = kept(out / stage)
        assert (record.kept, record.total) == (stored, total)
        assert record.sparsity == pytest.approx(1 - stored / total)
        assert read_json(out / stage / "checkpoint.json")["kept"] == stored
    assert pruned.sparsity == pytest.approx(0.9, abs=1e-3)


def test_masks_are_chosen_once_and_kept_by_the_stages_after(whole):
    masks = {stage: MaskView(load(whole[0] / stage)[0]).masks() for stage in ("pretrain", "prune", "finetune")}
    assert masks["pretrain"] == {}
    assert all(torch.equal(mask, masks["finetune"][name]) for name, mask in masks["prune"].items())
    assert len(masks["finetune"]) == 5


def test_what_a_checkpoint_says_of_itself(whole):
    for stage, pruner in (("pretrain", None), ("prune", "hydra"), ("finetune", "hydra")):
        meta = load(whole[0] / stage)[1]
        assert (meta.pruner, meta.threat, meta.net) == (pruner, tiny().threat, tiny().net)
        assert (meta.num_classes, meta.in_channels, meta.image_size) == (10, 1, 8)
        assert meta.recipe == tiny().plain()
        assert meta.metrics["epoch"] == (1 if stage == "prune" else 2)


def test_the_same_recipe_gives_the_same_files(whole, tmp_path):
    run(tiny(), tmp_path)
    assert contents(tmp_path) == contents(whole[0])


def test_another_seed_gives_other_numbers_everywhere(whole, tmp_path, monkeypatch):
    """Initial weights, order of the images, scores, and what training draws: each follows from the seed."""
    seen = {0: [], 1: []}
    training = sys.modules["hydraprune.recipes.training"]
    fit, prune = training.fit, training.prune

    def watched_fit(model, params, batches, *arguments, seed, **settings):
        labels = torch.cat([y for _, y in batches.epoch(0)])
        weights = torch.cat([p.detach().flatten() for p in model.parameters()])
        seen[number].append((labels.tolist(), weights.tolist(), watched(seed)))
        return fit(model, params, batches, *arguments, seed=seed, **settings)

    def watched(seed):
        """The first number that an objective would draw in the first epoch."""
        return torch.rand((), generator=generator(seed, 0, 0)).item()

    def watched_prune(view, pruner, budget, structure, probe):
        seen[number].append(torch.rand(3, generator=probe.rng).tolist())
        return prune(view, pruner, budget, structure, probe)

    monkeypatch.setattr(training, "fit", watched_fit)
    monkeypatch.setattr(training, "prune", watched_prune)
    for number in seen:
        run(tiny(f"seed={number}"), tmp_path / str(number))
    assert len(seen[0]) == len(seen[1]) == 4
    for mine, other in zip(seen[0], seen[1], strict=True):
        assert all(a != b for a, b in zip(mine, other, strict=True))


def test_a_kill_between_any_two_changes_of_the_folder_changes_nothing(whole):
    """The disk after a kill at any moment is one of these copies: every change to the folder is atomic."""
    out, records, copies = whole
    expected = contents(out)
    assert len(copies) > 30
    seen = {name for copy in copies for name in contents(copy)}
    assert {"pretrain/state.safetensors", "finetune/state.previous.safetensors", "prune/model.safetensors"} <= seen
    for copy in copies:
        again = run(tiny(), copy)
        assert [r.model_copy(update={"seconds": 0}) for r in again] == [
            r.model_copy(update={"seconds": 0}) for r in records
        ]
        found = contents(copy)
        finished = {name for name in found if not name.partition("/")[2].startswith("state.")}
        assert {name: found[name] for name in finished} == expected


@pytest.mark.parametrize("step", [1, 3, 4, 6, 8, 10])
def test_a_kill_in_the_middle_of_a_stage_changes_nothing(whole, tmp_path, monkeypatch, step):
    class Bomb(ProgressBar):
        fuse = step

        def on_step(self, clock, images, loss):
            Bomb.fuse -= 1
            if Bomb.fuse == 0:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hydraprune.recipes.training.ProgressBar", Bomb)
        with pytest.raises(KeyboardInterrupt):
            run(tiny(), tmp_path)
    run(tiny(), tmp_path)
    assert contents(tmp_path) == contents(whole[0])


def test_damaged_states_of_a_stage_are_passed_over(whole, tmp_path, monkeypatch, capsys):
    """The best network so far is part of them, so nothing of it is lost."""

    class Bomb(ProgressBar):
        def on_epoch(self, epoch, model, metrics):
            if self._label == "finetune" and epoch == 2:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hydraprune.recipes.training.ProgressBar", Bomb)
        with pytest.raises(KeyboardInterrupt):
            run(tiny(), tmp_path)
    state = tmp_path / "finetune" / "state.safetensors"
    tensors = load_file(state)
    assert {name for name in tensors if name.startswith("hooks/0/best/")}
    state.replace(both(state)[1])
    state.write_bytes(b"damaged")
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b"\xff\n")
    (tmp_path / ".recipe.yaml.nowhere.1.abcdefgh.tmp").write_text("")
    os.utime(tmp_path / ".recipe.yaml.nowhere.1.abcdefgh.tmp", (0, 0))
    run(tiny(), tmp_path, Console(width=20))
    assert contents(tmp_path) == contents(whole[0])
    assert not [file for file in tmp_path.rglob("*") if file.name.startswith((".", "state."))]
    said = capsys.readouterr().out
    assert f"finetune: {state} is corrupt or truncated" in said
    assert "training goes on after epoch 1, from state.previous.safetensors" in said
    assert "metrics.jsonl:6 is unreadable" in said


def refuse(*arguments, **settings):
    raise AssertionError("nothing is left to do")


def test_a_finished_run_is_not_run_again(whole, monkeypatch):
    out, records, _ = whole
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    for name in ("fit", "save", "prune"):
        monkeypatch.setattr(f"hydraprune.recipes.training.{name}", refuse)
    assert run(tiny(), out) == records
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")} == before


@pytest.mark.parametrize(
    ("override", "key"), [("seed=1", "seed"), ("threat.eps=0.2", "threat"), ("stages.prune.epochs=2", "stages")]
)
def test_another_recipe_is_refused_in_the_same_folder(whole, override, key):
    out, _, _ = whole
    before = contents(out)
    with pytest.raises(SpecError, match=rf"holds a run of another recipe \(recipe.yaml differs in {key}\); choose"):
        run(tiny(override), out)
    assert contents(out) == before


def test_another_machine_is_not_another_recipe(whole, monkeypatch):
    out, records, _ = whole
    monkeypatch.setattr("hydraprune.recipes.training.fit", refuse)
    assert run(tiny("trainer.threads=2"), out) == records


def test_a_state_of_other_settings_is_not_taken_up(tmp_path):
    """Not even if its folder's recipe was written anew."""
    with pytest.raises(TrainingError):
        run(tiny("stages.finetune.optim.lr=1e30"), tmp_path)
    with pytest.raises(SpecError, match="another recipe"):
        run(tiny(), tmp_path)
    assert (tmp_path / "prune" / "checkpoint.json").exists()
    shutil.copytree(tmp_path / "pretrain", tmp_path / "other" / "pretrain")
    shutil.copytree(tmp_path / "prune", tmp_path / "other" / "prune")
    assert [r.stage for r in run(tiny(), tmp_path / "other")] == ["pretrain", "finetune"]


def test_a_state_is_bound_to_the_settings_of_its_stage(tmp_path, monkeypatch):
    class Bomb(ProgressBar):
        def on_step(self, clock, images, loss):
            if clock.step == 3:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hydraprune.recipes.training.ProgressBar", Bomb)
        with pytest.raises(KeyboardInterrupt):
            run(tiny(), tmp_path)
    (tmp_path / "recipe.yaml").unlink()
    for change in ("stages.pretrain.optim.lr=0.01", "data.padding=0", "threat.eps=0.2", "seed=1"):
        with pytest.raises(CheckpointError, match=r"pretrain/state\.safetensors belongs to other settings"):
            run(tiny(change), tmp_path)
    assert len(run(tiny("stages.finetune.epochs=0", "stages.finetune.select=last"), tmp_path)) == 2


def test_a_damaged_checkpoint_stops_the_run_with_one_error(whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole[0], out)
    shutil.rmtree(out / "finetune")
    (out / "prune" / "model.safetensors").write_bytes(b"not this")
    with pytest.raises(CheckpointError, match=r"prune/model\.safetensors is corrupt") as caught:
        run(tiny(), out)
    assert "\n" not in str(caught.value)


def test_what_a_finished_stage_left_behind_is_removed(whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole[0], out)
    for file in both(out / "prune" / "state.safetensors"):
        file.write_bytes(b"")
    run(tiny(), out)
    assert not list(out.rglob("state.*"))


@pytest.mark.parametrize("out", ["", "x" * 300])
def test_a_folder_that_cannot_be_is_one_error(out):
    with pytest.raises(SpecError, match=r"has no name; give one|File name too long; choose another"):
        run(tiny(), out)


SELECTED = {
    (0.5, 0.9, 0.3): 2,
    (0.5, 0.5, 0.4): 1,
    (0.0, 0.0, 0.0): 1,
    (0.1, 0.2, 0.3): 3,
}


@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.parametrize("accuracies", SELECTED)
def test_the_best_epoch_is_handed_on(tmp_path, monkeypatch, accuracies, interrupted):
    """The network of the first epoch with the highest robust accuracy on validation images, as it was measured."""
    recipe = tiny("stages.pretrain.epochs=3", "stages.pretrain.select=best", "stages.evaluate.of=[pretrain]")
    networks = {}

    def judged(model, batches, *, threat, attacks, seed, **settings):
        (batch,) = batches
        assert len(batch.x) == 10
        epoch = Counting.epoch
        networks[epoch] = {name: value.clone() for name, value in tensors(model).items()}
        wins = torch.arange(10) < round(10 * accuracies[epoch - 1])
        zero = torch.zeros(10, dtype=torch.int64)
        return Evaluation(zero, zero, torch.ones(10), {attack.name: wins for attack in attacks})

    class Counting(ProgressBar):
        epoch = 1

        def on_start(self, epochs, steps_per_epoch, done):
            Counting.epoch = done + 1
            super().on_start(epochs, steps_per_epoch, done)

        def on_epoch(self, epoch, model, metrics):
            assert metrics["validation_robust_accuracy"] == accuracies[epoch - 1]
            Counting.epoch = epoch + 1
            super().on_epoch(epoch, model, metrics)
            if interrupted and epoch in broken:
                broken.remove(epoch)
                raise KeyboardInterrupt

    broken = [2, 3]
    values = recipe.plain()
    values["stages"] = values["stages"][:1]
    alone = type(recipe).parse(values, "alone")
    monkeypatch.setattr("hydraprune.recipes.validation.evaluate", judged)
    monkeypatch.setattr("hydraprune.recipes.training.ProgressBar", Counting)
    for _ in range(2 if interrupted else 0):
        with pytest.raises(KeyboardInterrupt):
            run(alone, tmp_path)
    assert run(alone, tmp_path) == []
    found = load_file(tmp_path / "pretrain" / "model.safetensors")
    best = SELECTED[accuracies]
    assert all(torch.equal(value, networks[best][name]) for name, value in found.items())
    assert not torch.equal(found["0.weight"], networks[best % 3 + 1]["0.weight"])
    assert sorted(os.listdir(tmp_path / "pretrain")) == ["checkpoint.json", "masks.safetensors", "model.safetensors"]


def test_validation_is_measured_when_it_is_due(tmp_path):
    settings = "stages.pretrain.validation={samples: 10, steps: 0, every: 2}"
    values = tiny("stages.pretrain.epochs=3", settings).plain()
    values["stages"] = values["stages"][:1]
    run(type(tiny()).parse(values, "short"), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert ["validation_accuracy" in line for line in lines] == [False, True, True]
    assert not any("validation_robust_accuracy" in line for line in lines)


def attacked(*stages):
    """The tiny recipe with these evaluations of the fine-tuned network."""
    values = tiny().plain()
    values["stages"][3:] = [{"kind": "evaluate", "name": f"e{n}", "samples": 20, **s} for n, s in enumerate(stages)]
    return type(tiny()).parse(values, "attacked")


ONE_STEP = {"kind": "pgd", "steps": 1, "restarts": 1}


def test_several_evaluations_of_a_network_are_one_record(tmp_path, monkeypatch):
    recipe = attacked({"attacks": ["fgsm"]}, {"attacks": [ONE_STEP], "samples": 10})
    (record,) = run(recipe, tmp_path)
    assert (record.stage, list(record.robust_accuracy)) == ("finetune", ["fgsm", "pgd-1x1", "worst-case"])
    assert (record.samples, record.robust_samples) == (20, {"pgd-1x1": 10, "worst-case": 10})
    monkeypatch.setattr("hydraprune.recipes.measure.evaluate", refuse)
    assert run(recipe, tmp_path) == [record]


def test_an_attack_added_later_is_run_on_the_networks_that_are_there(tmp_path, monkeypatch):
    """And nothing else is done again."""
    (before,) = run(attacked({"attacks": ["fgsm"]}), tmp_path)
    original, made = sys.modules["hydraprune.recipes.measure"].evaluate, []

    def counted(model, batches, *, attacks, **settings):
        made.extend(attack.name for attack in attacks)
        return original(model, batches, attacks=attacks, **settings)

    monkeypatch.setattr("hydraprune.recipes.measure.evaluate", counted)
    monkeypatch.setattr("hydraprune.recipes.training.fit", refuse)
    more = attacked({"attacks": ["fgsm", ONE_STEP]})
    (after,) = run(more, tmp_path)
    assert made == ["pgd-1x1"]
    assert after.robust_accuracy["fgsm"] == before.robust_accuracy["fgsm"]
    assert "pgd-1x1" in after.robust_accuracy
    assert load_recipe(str(tmp_path / "recipe.yaml")) == more


def test_what_was_measured_of_other_weights_is_measured_anew(tmp_path):
    recipe = attacked({"attacks": ["fgsm"]})
    (before,) = run(recipe, tmp_path)
    assert before.network == read_json(tmp_path / before.stage / "checkpoint.json")["sha256"]["model.safetensors"]
    other = before.model_copy(update={"network": "other", "robust_accuracy": {"fgsm": 1.0, "square": 1.0}})
    write_json(tmp_path / "results.json", [other.plain()])
    (after,) = run(recipe, tmp_path)
    assert (after.network, after.robust_accuracy) == (before.network, before.robust_accuracy)


def test_an_attack_can_be_run_on_fewer_images(tmp_path):
    values = tiny().plain()
    values["stages"][1:] = [
        {"kind": "evaluate", "samples": 30, "attacks": ["fgsm", {"kind": "pgd", "steps": 1, "restarts": 1}],
         "attack_samples": {"pgd": 7}, "batch_size": 4},
    ]  # fmt: skip
    (record,) = run(type(tiny()).parse(values, "fewer"), tmp_path)
    assert (record.samples, record.robust_samples) == (30, {"pgd-1x1": 7, "worst-case": 7})


def test_training_in_bf16(tmp_path):
    records = run(tiny("trainer.precision=bf16"), tmp_path)
    assert len(records) == 2
    assert {value.dtype for value in load_file(tmp_path / "finetune" / "model.safetensors").values()} == {
        torch.float32, torch.int64,
    }  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there():
    with pytest.raises(SpecError, match=r"trainer\.device is 'cuda' but torch sees no GPU; use `--set trainer"):
        run(tiny("trainer.device=cuda"), "never")
    assert not Path("never").exists()


@pytest.mark.parametrize(
    ("overrides", "error", "complaint"),
    [
        (["data.samples=5"], Exception, r"leave class .* without any; raise data\.fraction or data\.samples"),
        (["data={kind: cifar10, path: /nowhere}"], Exception, r"data\.path '/nowhere' is not a folder"),
        (["data={kind: images}"], Exception, r"data\.path is missing"),
        (["net.kind=vgg16_bn"], SpecError, r"vgg16_bn cannot take 8x8 images; it needs at least 16x16"),
        (["net.kind=torch.nn:Identity"], SpecError, r"net 'torch\.nn:Identity' "),
        (["net.kind=torch.nn:ReLU"], SpecError, r"net 'torch\.nn:ReLU' "),
        (["net.weights=/nowhere.safetensors"], CheckpointError, r"/nowhere\.safetensors: no such file"),
        (["stages.pretrain.optim.lr=1e30"], TrainingError, r"the loss is (nan|inf) at step \d"),
    ],
)
def test_what_stops_a_run_is_one_error(tmp_path, overrides, error, complaint):
    with pytest.raises(error, match=complaint):
        run(tiny(*overrides), tmp_path)


def test_a_network_without_anything_to_prune(tmp_path, monkeypatch):
    (tmp_path / "hollow.py").write_text(
        "from torch import nn\n"
        "def pooled(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.AdaptiveAvgPool1d(num_classes))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PruningError, match="Sequential has no convolution, linear layer or attention"):
        run(tiny("net.kind=hollow:pooled"), tmp_path / "run")


TWO = """
import sys, time
import torch
import hydraprune.recipes.training as training
from hydraprune.recipes.runner import run
from recipes.tiny import tiny

finished = training.finished

def late(folder):
    # The second process looks when the first has long finished a stage without training.
    if torch.distributed.is_initialized() and torch.distributed.get_rank() == 1:
        time.sleep(1)
    return finished(folder)

training.finished = late
settings = ["stages.prune.pruner=magnitude", "stages.prune.epochs=0", "trainer.devices=2", "data.samples=180"]
run(tiny(*settings), sys.argv[1])
"""


def test_two_processes_share_a_run(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO)
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(script), str(tmp_path / "run")]
    ran = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    written = contents(tmp_path / "run")
    assert written["environment.json"]["processes"] == 2
    assert [(record["stage"], record["pruner"]) for record in written["results.json"]] == [
        ("pretrain", None), ("finetune", "magnitude"),
    ]  # fmt: skip
    epochs = [(line["stage"], line["epoch"]) for line in written["metrics.jsonl"]]
    assert len(epochs) == len(set(epochs)) == 4
    assert not [name for name in written if name.partition("/")[2].startswith("state.")]


def test_the_folder_of_a_study_takes_no_run(tmp_path):
    (tmp_path / "study.yaml").write_text("name: small\n")
    with pytest.raises(SpecError, match="holds a study; choose another --out"):
        run(tiny(), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["study.yaml"]


class Embedded(torch.nn.Module):
    """A network with positions, which no mask reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = torch.nn.Parameter(torch.zeros(1, 8, 8))
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))

    def forward(self, x):
        return self.layers(x + self.positions)


def test_both_sparsities_are_told_and_what_is_out_of_reach(tmp_path, monkeypatch):
    module = ModuleType("embedded")
    module.made = Embedded
    monkeypatch.setitem(sys.modules, "embedded", module)
    shown = io.StringIO()
    values = tiny("net.kind=embedded:made").plain()
    values["stages"] = values["stages"][:2]
    run(type(tiny()).parse(values, "embedded"), tmp_path, Console(file=shown, width=200))
    # 576 of 640 weights are gone, of 714 numbers with 10 biases and 64 positions.
    line = "prune: removed 90.0 % of 640 prunable weights, 80.7 % of 714 parameters; out of reach: positions (64)"
    assert line in shown.getvalue().splitlines()
