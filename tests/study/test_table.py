"""Tables of a study against arithmetic by hand."""

import csv
import io
import json
import shutil
import sys

import numpy as np
import pytest
import yaml

from hydraprune.cli import main
from hydraprune.core.errors import DataError, SpecError
from hydraprune.core.files import write_json
from hydraprune.report import as_markdown, rows
from hydraprune.runs.folder import find_runs
from hydraprune.study import differences, results, run_study, study_in, work
from hydraprune.study.schema import read_study
from hydraprune.study.settle import run_plain, settle
from hydraprune.study.shared import adopt, trunk
from hydraprune.study.table import as_csv, differences_markdown, summarize
from hydraprune.study.work import prepare
from study.small import GRID, Training, study

ACCURACY = {"hydra": [0.8, 0.7, 0.75], "magnitude": [0.6, 0.65, 0.7], None: [0.9, 0.8, 0.85]}
SEEDS = study(grid={**GRID, "seed": [0, 1, 2]})


def accuracy(recipe, pruner):
    """By method and seed, and lower at 90 %."""
    return ACCURACY[pruner][recipe.seed] - (0.1 if pruner and recipe.stages[1].budget.sparsity == 0.9 else 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "out"
    run_study(SEEDS, out, call=Training(accuracy))
    return out


def test_rows_are_means_over_seeds_of_cells_with_the_same_labels(folder):
    assert study_in(folder)
    table = results(folder)
    shown = [(row.pruner, row.labels.get("sparsity"), row.runs, row.seeds) for row in table]
    seeds = ["0", "1", "2"]
    assert shown == [
        ("dense", None, 3, seeds),
        ("hydra", "0.5", 3, seeds), ("hydra", "0.9", 3, seeds),
        ("magnitude", "0.5", 3, seeds), ("magnitude", "0.9", 3, seeds),
    ]  # fmt: skip
    for row in table:
        values = ACCURACY.get(row.pruner, ACCURACY[None])
        expected = np.array(values) - (0.1 if row.labels.get("sparsity") == "0.9" else 0)
        assert row.figures["clean"].mean == pytest.approx(expected.mean())
        assert row.figures["clean"].std == pytest.approx(expected.std(ddof=1))
        assert row.figures["fgsm"].mean == pytest.approx(expected.mean() / 2)
    assert [row.sparsity for row in table] == [0, 0.5, 0.9, 0.5, 0.9]
    assert "| hydra | 90.0 | 100 of 1,000 | 65.0 ± 5.0 | 32.5 ± 2.5 |" in as_markdown(table)


def test_some_of_the_cells(folder):
    table = results(folder, ["seed=1", "method=hydra"])
    assert [(row.pruner, row.labels.get("sparsity"), row.runs) for row in table] == [
        ("dense", None, 1), ("hydra", "0.5", 1), ("hydra", "0.9", 1),
    ]  # fmt: skip
    assert [row.figures["clean"].mean for row in table] == pytest.approx([0.8, 0.7, 0.6])
    wrong = {"seed=4": "did you mean 'seed=[012]'", "hydra": "write AXIS=LABEL", "sed=1": "did you mean 'seed=1'"}
    for condition, message in wrong.items():
        with pytest.raises(SpecError, match=message):
            results(folder, [condition])


def test_what_was_measured_later_in_the_folder_of_any_cell_counts(tmp_path):
    """Of a network that cells share, too; and no table shows it where only some seeds have it."""
    run_study(SEEDS, tmp_path, call=Training(accuracy))
    values = {}
    for seed, value in (("0", 0.25), ("1", 0.125), ("2", 0.375)):
        method = "magnitude" if seed == "1" else "hydra"
        cell = next(c for c in SEEDS.cells() if c.labels == {"method": method, "sparsity": "0.9", "seed": seed})
        values[seed] = value
        for stage in ("pretrain", "finetune"):
            record = Training.record(stage, None, 0, 0.5, 0) | {"robust_accuracy": {"autoattack": value}, "samples": 5}
            write_json(tmp_path / cell.name / stage / "evaluation.json", record)
    table = results(tmp_path)
    dense = table[0].figures
    assert dense["autoattack"].values == [values[seed] for seed in table[0].seeds]
    assert dense["clean"].mean == pytest.approx(np.mean(ACCURACY[None]))
    assert all("autoattack" not in row.figures for row in table[1:])


def test_unfinished_cells_are_left_out(tmp_path):
    prepare(study(), study().cells(), tmp_path)
    with pytest.raises(SpecError, match=r"no cell of the study in .* is finished"):
        results(tmp_path)

    class Partly(Training):
        def __call__(self, values, out):
            if "hydra" in out and "seed=1" in out:
                raise ZeroDivisionError
            super().__call__(values, out)

    run_study(study(), tmp_path / "out", call=Partly(accuracy))
    assert {row.pruner: row.runs for row in results(tmp_path / "out")} == {"dense": 2, "hydra": 1, "magnitude": 2}


@pytest.mark.parametrize(
    "recipe", ["digits-cnn_digits-trades", {"extends": "/etc/passwd"}, {"extends": "digits-cnn_digits-trades"}]
)
def test_a_study_that_was_written_down_makes_no_other_file_be_read(tmp_path, recipe):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"name": "a", "recipe": recipe, "grid": {"seed": [0]}}))
    with pytest.raises(SpecError, match="its recipe stands in another file"):
        results(tmp_path)


def test_what_is_written_down_is_resolved(tmp_path):
    named = study(recipe="digits-cnn_digits-trades", grid={"seed": [0]})
    prepare(named, named.cells(), tmp_path)
    assert read_study(tmp_path / "study.yaml").cells() == named.cells()


def test_shared_networks_have_the_labels_that_their_cells_share(tmp_path):
    wider = study(grid={**GRID, "threat.eps": [0.1, 0.2]})
    run_study(wider, tmp_path, call=Training(accuracy))
    table = results(tmp_path)
    assert [row.pruner for row in table if row.stage == "pretrain"] == ["dense, eps=0.1", "dense, eps=0.2"]
    assert len(table) == 2 + 8
    assert {row.runs for row in table} == {2}


def test_cells_have_what_was_measured_of_the_network_that_they_share(tmp_path):
    first = trunk(SEEDS.cells()[0].recipe)
    shared, out = tmp_path / "shared", tmp_path / "cell"
    Training()(first.plain(), str(shared))
    for name, text in (("verdicts.safetensors", "v"), ("certified-1.jsonl", "{}\n")):
        (shared / "pretrain" / name).write_text(text)
    (out / "pretrain").mkdir(parents=True)
    (out / "pretrain" / "curves.json").write_text("its own")
    (shared / "pretrain" / "curves.json").write_text("c")
    adopt(first, shared, out)
    with (out / "pretrain" / "certified-1.jsonl").open("a") as file:
        file.write("{}\n")
    found = {file.name: file.read_text() for file in (out / "pretrain").iterdir() if "checkpoint" not in file.name}
    assert found["verdicts.safetensors"] == "v"
    assert found["curves.json"] == "its own"
    assert (found["certified-1.jsonl"], (shared / "pretrain" / "certified-1.jsonl").read_text()) == ("{}\n{}\n", "{}\n")


def test_a_summary_is_kept_in_the_folder_of_the_study_which_is_no_run_for_that(tmp_path):
    run_study(SEEDS, tmp_path, call=Training(accuracy))
    table = summarize(tmp_path)
    assert [row.plain() for row in table] == json.loads((tmp_path / "results.json").read_text())
    assert results(tmp_path) == table
    assert {run.path.name for run in find_runs([tmp_path])} == {cell.name for cell in SEEDS.cells()}
    # The same networks and figures by the recipes of the runs, without the study; by sparsity.
    found = {(row.pruner, row.removed): row.figures["clean"].values for row in rows([tmp_path])}
    dense = found.pop(("dense", "0"))
    assert found == {(row.pruner, row.removed): row.figures["clean"].values for row in table[1:]}
    assert {*dense} == {*table[0].figures["clean"].values}


def test_bare_numbers_are_told_with_what_they_are_of(tmp_path):
    rates = {"stages.prune.optim.lr": [0.1, 1e-3], "seed": [0]}
    run_study(study(grid=rates), tmp_path, call=Training(accuracy))
    assert [row.pruner for row in results(tmp_path)] == ["dense", "lr=0.1", "lr=0.001"]


def test_differences_are_paired_by_seed(folder):
    gains = differences(results(folder), "magnitude")
    assert [(row.pruner, row.labels["sparsity"]) for row in gains] == [("hydra", "0.5"), ("hydra", "0.9")]
    paired = np.array(ACCURACY["hydra"]) - np.array(ACCURACY["magnitude"])
    for row in gains:
        found = row.figures["clean"]
        assert found.mean == pytest.approx(paired.mean())
        assert found.pairs == 3
        # All 27 resamples, each as likely as the others.
        every = np.repeat([np.mean([a, b, c]) for a in paired for b in paired for c in paired], 100)
        assert found.low == pytest.approx(np.quantile(every, 0.025), abs=0.006)
        assert found.high == pytest.approx(np.quantile(every, 0.975), abs=0.006)
    assert differences(results(folder), "method=magnitude") == gains
    assert "| hydra | 90.0 | +10.0 [+5.0, +20.0] |" in differences_markdown(gains, "magnitude")


def test_a_single_pair_has_no_interval(tmp_path):
    run_study(study(exclude=[{"method": "hydra", "seed": 1}]), tmp_path, call=Training(accuracy))
    for row in differences(results(tmp_path), "magnitude"):
        found = row.figures["clean"]
        assert (found.pairs, found.low, found.high) == (1, None, None)
        assert found.mean == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("baseline", "complaint"),
    [("magnitud", r"no row is labelled 'magnitud'; did you mean 'magnitude'\?"), ("sparsity=magnitude", "no row is")],
)
def test_a_baseline_that_is_not_there(folder, baseline, complaint):
    with pytest.raises(SpecError, match=complaint):
        differences(results(folder), baseline)


def test_a_label_on_two_axes_must_be_told_apart(tmp_path):
    grid = {"objective.beta": [1, 6], "stages.prune.epochs": [1, 2], "seed": [0]}
    run_study(study(grid=grid), tmp_path, call=Training(accuracy))
    with pytest.raises(SpecError, match=r"'1' is a label on several axes; write .*=1 or "):
        differences(results(tmp_path), "1")
    gains = differences(results(tmp_path), "objective.beta=1")
    assert [row.stage for row in gains] == ["pretrain", "finetune", "finetune"]


def test_csv_has_every_figure(folder):
    lines = list(csv.DictReader(io.StringIO(as_csv(results(folder)))))
    assert len(lines) == 5 * 2
    line = next(x for x in lines if (x["method"], x["sparsity"], x["figure"]) == ("hydra", "0.9", "clean"))
    assert [float(value) for value in line["values"].split()] == pytest.approx([0.7, 0.6, 0.65])
    assert (float(line["mean"]), line["kept"], line["runs"]) == (pytest.approx(0.65), "100", "3")


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Runs a command line in an empty folder; returns exit code and output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["hydraprune", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        shown = capsys.readouterr()
        return caught.value.code or 0, shown.out + shown.err

    return call


def test_the_commands(folder, command, tmp_path):
    code, text = command("table", folder, "--baseline", "magnitude", "--out", "tables/t")
    assert code == 0
    assert "+10.0 [+5.0, +20.0]" in text
    names = ["t.csv", "t.differences.json", "t.json", "t.md", "t.png"]
    assert sorted(file.name for file in (tmp_path / "tables").iterdir()) == names
    assert "against magnitude" in (tmp_path / "tables" / "t.md").read_text()
    assert json.loads((tmp_path / "tables" / "t.json").read_text())[0]["pruner"] == "dense"
    code, text = command("study", folder / "study.yaml", "--out", folder, "--dry-run")
    assert code == 0
    assert text.splitlines() == [f"{cell.name}  done" for cell in SEEDS.cells()]
    code, text = command("study", folder / "study.yaml", "--out", folder)
    assert (code, text.strip().splitlines()[-1][-7:]) == (0, "12 done")
    code, text = command("study", "methods-digits", "--out", folder)
    assert code == 2
    assert "holds the study 'small'" in text
    code, text = command("table", folder, "--where", "seed=1", "--where", "method=hydra")
    assert code == 0
    assert "magnitude" not in text
    for option, value in (("--baseline", "magnitude"), ("--where", "seed=1")):
        code, text = command("table", tmp_path, option, value)
        assert code == 2
        assert "--baseline and --where are about the cells of a study" in text


def test_a_failed_cell_shows_in_the_exit_code(command, tmp_path, monkeypatch):
    class Here:
        """In place of a process of its own."""

        def __init__(self, out, began, width):
            self.settings = {"out": out, "began": began, "call": run_plain}

        def __call__(self, cell):
            return settle(cell, **self.settings)

        def close(self):
            pass

    monkeypatch.setattr(work, "Beside", Here)
    (tmp_path / "bad.yaml").write_text(
        "name: bad\nrecipe: digits-cnn_digits-trades\nset: {data.samples: 100000}\ngrid: {seed: [0]}\n"
    )
    code, text = command("study", "bad.yaml", "--out", "out")
    assert code == 1
    assert "exceeds the" in text
    assert "failure.json" in text


def test_cells_that_were_run_on_different_data_make_no_table(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "out")
    cells = [cell.name for cell in SEEDS.cells()]
    for name in cells[:3]:
        write_json(tmp_path / "out" / name / "data.json", {"train": "a", "test": "b"})
    assert len(results(tmp_path / "out")) == 5
    write_json(tmp_path / "out" / cells[2] / "data.json", {"train": "a", "test": "c"})
    with pytest.raises(DataError, match=f"the cells {cells[0]} and {cells[2]} were run on different images or labels"):
        results(tmp_path / "out")
