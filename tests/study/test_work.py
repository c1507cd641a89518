"""Running a study: each network once, whoever runs it and whatever fails."""

import json
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from hydraprune.core.errors import SpecError, TrainingError
from hydraprune.core.files import write_json
from hydraprune.recipes.runner import run
from hydraprune.runs.checkpoint import load
from hydraprune.runs.lock import own
from hydraprune.study import cluster, run_study, standing, work
from hydraprune.study.settle import run_plain
from hydraprune.study.shared import key, trunk
from recipes.tiny import timeless
from study.small import RECIPE, Training, study

GIVEN = study()
NAMES = [cell.name for cell in GIVEN.cells()]
SHARED = sorted({key(trunk(cell.recipe)) for cell in GIVEN.cells()})


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(work, "POLL", 0.01)
    monkeypatch.setattr(work, "PATIENCE", 0)


def test_shared_stages_are_trained_once_and_linked(tmp_path):
    training = Training()
    assert run_study(GIVEN, tmp_path, call=training) == dict.fromkeys(NAMES, "done")
    ran = [name for name in training.names if "=" in name]
    assert ran == NAMES
    first = {name: training.names.index(name) for name in SHARED}
    assert sorted(p.name for p in (tmp_path / "shared").iterdir()) == SHARED
    for cell in GIVEN.cells():
        name = key(trunk(cell.recipe))
        assert first[name] < training.names.index(cell.name)
        for file in ("model.safetensors", "masks.safetensors", "checkpoint.json"):
            mine, theirs = tmp_path / cell.name / "pretrain" / file, tmp_path / "shared" / name / "pretrain" / file
            assert mine.samefile(theirs)
        stages = [record["stage"] for record in json.loads((tmp_path / cell.name / "results.json").read_text())]
        assert stages == ["pretrain", "finetune"]
    assert not list(tmp_path.rglob(".*"))


def test_what_is_finished_is_skipped_and_a_larger_grid_goes_on(tmp_path):
    run_study(GIVEN, tmp_path, call=Training())
    again = Training()
    assert run_study(GIVEN, tmp_path, call=again) == dict.fromkeys(NAMES, "done")
    assert again.names == []
    larger = study(grid={**GIVEN.grid, "seed": [0, 1, 2]})
    run_study(larger, tmp_path, call=again)
    assert {name[-6:] for name in again.names if "=" in name} == {"seed=2"}
    with pytest.raises(SpecError, match="cells that this grid lacks, such as method=hydra,sparsity"):
        run_study(GIVEN, tmp_path, call=again)  # which tables would leave out, and the page not
    evaluated = Training()
    changed = {"grid": larger.grid, "set": {"stages.evaluate.attacks": ["fgsm", "pgd"]}}
    run_study(study(**changed), tmp_path, call=evaluated)
    assert {name for name in evaluated.names if "=" in name} == {cell.name for cell in larger.cells()}


def test_another_line_about_it_changes_nothing(tmp_path):
    run_study(GIVEN, tmp_path, call=Training())
    again = Training()
    assert run_study(study(about="now with a line about it"), tmp_path, call=again) == dict.fromkeys(NAMES, "done")
    assert again.names == []


def test_a_cell_from_before_a_setting_existed_is_still_finished(tmp_path):
    run_study(GIVEN, tmp_path, call=Training())
    older, newer = (tmp_path / name / "cell.json" for name in NAMES[:2])
    value = json.loads(older.read_text())
    assert value["recipe"]["data"].pop("flip") is not None
    write_json(older, value)
    value = json.loads(newer.read_text())
    value["recipe"]["data"]["rotate"] = True
    write_json(newer, value)
    states = standing(GIVEN.cells(), tmp_path)
    assert (states[NAMES[0]], states[NAMES[1]]) == ("done", "open")


class Failing(Training):
    """Cannot run what has `part` in its name."""

    def __init__(self, part, error):
        super().__init__()
        self.part, self.error = part, error

    def __call__(self, values, out):
        if self.part in out:
            self.names.append(Path(out).name)
            raise self.error
        super().__call__(values, out)


@pytest.mark.parametrize("error", [TrainingError("the loss is nan"), ZeroDivisionError("by zero")])
def test_a_failure_costs_one_cell_and_is_tried_again(tmp_path, error):
    bad = NAMES[2]
    states = run_study(GIVEN, tmp_path, call=Failing(bad, error))
    assert states == {name: "failed" if name == bad else "done" for name in NAMES}
    record = json.loads((tmp_path / bad / "failure.json").read_text())
    assert str(error) in record["error"]
    assert "test_work.py" in record["trace"]
    assert standing(GIVEN.cells(), tmp_path) == states
    better = Training()
    assert run_study(GIVEN, tmp_path, call=better)[bad] == "done"
    assert [name for name in better.names if "=" in name] == [bad]
    assert not (tmp_path / bad / "failure.json").exists()


def test_a_failed_pre_training_is_not_tried_for_every_cell(tmp_path):
    broken = Failing("/shared/", TrainingError("the disk is full"))
    assert run_study(GIVEN, tmp_path, call=broken) == dict.fromkeys(NAMES, "failed")
    assert sorted(broken.names) == SHARED


def test_many_at_once_run_every_network_once(tmp_path):
    class Slow(Training):
        def __call__(self, values, out):
            time.sleep(0.02)
            super().__call__(values, out)

    trainings = [Slow(), Slow()]
    threads = [
        threading.Thread(target=run_study, args=(GIVEN, tmp_path), kwargs={"jobs": 2, "call": training})
        for training in trainings
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ran = [name for training in trainings for name in training.names if "=" in name]
    assert sorted(ran) == sorted(NAMES)
    assert standing(GIVEN.cells(), tmp_path) == dict.fromkeys(NAMES, "done")


class Another:
    """A thread that owns a folder, until it is told to end or `until` is set."""

    def __init__(self, folder, until=None):
        self._folder, self._held, self._until = folder, threading.Event(), until or threading.Event()
        self._thread = threading.Thread(target=self._hold)

    def _hold(self):
        with own(self._folder):
            self._held.set()
            assert self._until.wait(60)

    def __enter__(self):
        self._thread.start()
        assert self._held.wait(60)

    def __exit__(self, *error):
        self._until.set()
        self._thread.join()


def test_a_cell_of_another_is_left_to_it(tmp_path):
    work.prepare(GIVEN, GIVEN.cells(), tmp_path)
    with Another(tmp_path / NAMES[0]):
        states = run_study(GIVEN, tmp_path, call=Training())
    assert states == {name: "elsewhere" if name == NAMES[0] else "done" for name in NAMES}


def test_pre_training_by_another_is_awaited_while_other_cells_run(tmp_path):
    theirs = [cell.name for cell in GIVEN.cells() if key(trunk(cell.recipe)) == SHARED[0]]
    released = threading.Event()

    class Releasing(Training):
        def __call__(self, values, out):
            super().__call__(values, out)
            if len([name for name in self.names if "=" in name]) == len(NAMES) - len(theirs):
                released.set()

    training = Releasing()
    work.prepare(GIVEN, GIVEN.cells(), tmp_path)
    with Another(tmp_path / "shared" / SHARED[0], until=released):
        assert run_study(GIVEN, tmp_path, call=training) == dict.fromkeys(NAMES, "done")
    assert sorted([name for name in training.names if "=" in name][-len(theirs) :]) == sorted(theirs)


def test_a_failure_elsewhere_since_we_began_is_not_repeated(tmp_path):
    class Meanwhile(Training):
        def __call__(self, values, out):
            super().__call__(values, out)
            other = tmp_path / NAMES[-1] / "failure.json"
            write_json(other, {"error": "", "trace": "", "time": time.time(), "labels": {}})

    training = Meanwhile()
    assert run_study(GIVEN, tmp_path, call=training)[NAMES[-1]] == "failed"
    assert NAMES[-1] not in training.names


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        (study(name="other"), r"holds the study 'small'; choose another --out"),
        (study(set={"stages.finetune.epochs": 7}), r"holds a run of another recipe \(recipe.yaml differs in stages\)"),
    ],
)
def test_the_folder_of_another_study_is_refused_before_anything_runs(tmp_path, other, complaint):
    run_study(GIVEN, tmp_path, call=Training())
    before = (tmp_path / "study.yaml").read_text()
    training = Training()
    with pytest.raises(SpecError, match=complaint):
        run_study(other, tmp_path, call=training)
    assert training.names == []
    assert (tmp_path / "study.yaml").read_text() == before


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(SpecError, match="holds something else than a study"):
        run_study(GIVEN, tmp_path, call=Training())


def test_a_cell_is_the_run_of_its_recipe(tmp_path):
    """Real training: sharing the pre-training changes nothing."""
    small = study(grid={"method": {"stages.prune.pruner": ["hydra"]}, "seed": [3]})
    (cell,) = small.cells()
    run_study(small, tmp_path / "study", call=run_plain)
    records = run(cell.recipe, tmp_path / "alone")
    found = json.loads((tmp_path / "study" / cell.name / "results.json").read_text())
    assert timeless(found) == timeless([record.plain() for record in records])
    for stage in ("pretrain", "prune", "finetune"):
        one, other = (
            load(folder / stage)[0].state_dict() for folder in (tmp_path / "study" / cell.name, tmp_path / "alone")
        )
        assert all(value.equal(other[name]) for name, value in one.items())
    lines = (tmp_path / "study" / cell.name / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["stage"] for line in lines] == ["pretrain", "prune", "finetune"]


def test_a_process_that_dies_costs_one_cell(tmp_path, monkeypatch):
    (tmp_path / "lethal.py").write_text("import os\ndef make(**options):\n    os._exit(9)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    stages = [{**RECIPE["stages"][1], "epochs": 0, "pruner": "magnitude"}]
    small = study(recipe={**RECIPE, "stages": stages}, grid={"net.kind": ["lethal:make", "cnn_digits"]})
    states = run_study(small, tmp_path / "out")
    assert states == {"net.kind=lethal-make": "failed", "net.kind=cnn_digits": "done"}
    assert (
        "its process ended with exit code 9" in (tmp_path / "out" / "net.kind=lethal-make" / "failure.json").read_text()
    )


def test_ray_is_asked_for_a_worker_for_every_gpu(tmp_path, monkeypatch):
    asked = []
    run_study(GIVEN, tmp_path, call=Training())

    def remote(**options):
        asked.append(options)
        return lambda function: types.SimpleNamespace(remote=function)

    ray = types.ModuleType("ray")
    ray.init = lambda address, ignore_reinit_error: asked.append(address)
    ray.cluster_resources = lambda: {"CPU": 64.0, "GPU": 3.0}
    ray.remote, ray.get = remote, lambda futures: asked.append(len(futures))
    monkeypatch.setitem(sys.modules, "ray", ray)
    assert cluster.run_on_ray(GIVEN, tmp_path, "auto") == dict.fromkeys(NAMES, "done")
    assert asked == ["auto", {"num_gpus": 1, "num_cpus": 1}, 3]


def test_without_ray_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SpecError, match=r"pip install 'hydraprune\[ray\]'"):
        cluster.run_on_ray(GIVEN, tmp_path, "auto")
