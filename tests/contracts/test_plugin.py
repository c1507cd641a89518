"""A package outside brings one method of every kind, which a recipe uses as if they were built in."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

HERE = Path(__file__).parents[1] / "plugin"
OPTIM = {"lr": 0.02}
RECIPE = {
    "name": "acme",
    "data": {"kind": "stripes", "samples": 100},
    "net": {"kind": "acme.net:tiny", "options": {"width": 5}},
    "threat": {"norm": "linf", "eps": 0.05},
    "objective": {"kind": "natural"},
    "stages": [
        {"kind": "fit", "name": "pretrain", "over": "weights", "epochs": 3, "batch_size": 20, "optim": OPTIM},
        {"kind": "fit", "name": "thin", "over": "weights", "epochs": 2, "batch_size": 20, "optim": OPTIM,
         "pruner": {"kind": "breathing", "every": 2}, "budget": {"kind": "traffic", "sparsity": 0.3},
         "objective": {"kind": "anchored", "weight": 0.5}, "networks": {"anchor": "pretrain"}},
        {"kind": "fit", "name": "prune", "over": "weights", "epochs": 0, "pruner": "variance", "structure": "kernel",
         "budget": {"kind": "uniform", "sparsity": 0.5}, "exempt": ["last"]},
        {"kind": "fit", "name": "finetune", "over": "weights", "epochs": 3, "batch_size": 20, "optim": OPTIM},
        {"kind": "round", "levels": 15},
        {"kind": "evaluate", "of": ["finetune", "round"], "attacks": ["fgsm", "committee"], "samples": 40},
        {"kind": "certify", "of": ["round"], "bounds": ["smallest-ball", "crown"], "samples": 10},
    ],
    "variables": {"pruner": "stages.prune.pruner"},
    "trainer": {"device": "cpu", "threads": 1},
}  # fmt: skip
KINDS = {
    "datasets": "stripes", "stages": "round", "objectives": "anchored", "pruners": "breathing", "budgets": "traffic",
    "structures": "kernel", "attacks": "committee", "bounds": "smallest-ball",
}  # fmt: skip


@pytest.fixture(scope="module")
def acme(tmp_path_factory):
    """The commands, where the package is installed, and the folder of a run."""
    out = tmp_path_factory.mktemp("acme")
    (out / "acme.yaml").write_text(yaml.safe_dump(RECIPE))
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])

    def command(*arguments):
        ran = subprocess.run(
            [sys.executable, "-m", "hydraprune", *arguments],
            cwd=out, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    command("run", "acme.yaml", "--out", "run")
    return command, out / "run"


def test_every_kind_is_listed_with_its_package(acme):
    command, _ = acme
    sections = re.split(r"^(\w+)\n", command("list"), flags=re.MULTILINE)
    found = dict(zip(sections[1::2], sections[2::2], strict=True))
    for section, name in KINDS.items():
        assert re.search(rf"^  {name} +the plug-in acme\.\w+:\w+ of the package acme$", found[section], re.MULTILINE)


def test_each_does_its_part_of_a_run(acme):
    _, run = acme
    records = {record["stage"]: record for record in json.loads((run / "results.json").read_text())}
    assert {*records["round"]["robust_accuracy"]} == {"fgsm", "committee-with-pretrain", "worst-case"}
    proofs = records["round"]["verified"]
    assert proofs["smallest-ball"]["verified_accuracy"] >= proofs["crown"]["verified_accuracy"]
    assert records["round"]["clean_accuracy"] > 0.9
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines if "anchor_distance" in line] == ["thin", "thin"]
    pretrain, thin, prune, finetune, rounded = (
        load_file(run / stage / "model.safetensors") for stage in ("pretrain", "thin", "prune", "finetune", "round")
    )
    weights = ("0.weight", "3.weight", "6.weight")
    # The bytes that are spared: 4 of each weight of a convolution, 1 of the linear layer.
    moved = {name: (1 if name == "6.weight" else 4) for name in weights}
    left = sum(moved[n] * int(thin[n].count_nonzero()) for n in weights)
    assert left == pytest.approx(0.7 * sum(moved[n] * thin[n].numel() for n in weights), abs=4)
    # Whole kernels, half of each convolution's, of what was left.
    for name in weights[:2]:
        gone = (prune[name] == 0).flatten(2).all(2)
        assert int(gone.sum()) >= gone.numel() // 2
    assert (pretrain["3.weight"] != 0).all()
    for name in weights:
        steps = rounded[name] / (finetune[name].abs().max() / 15)
        assert (steps - steps.round()).abs().max() < 1e-4


def test_a_run_goes_on_and_a_study_varies_what_a_plug_in_brings(acme):
    command, run = acme
    results = (run / "results.json").read_text()
    again = command("run", "acme.yaml", "--out", "run")
    assert "rounded" not in again
    assert again.count("measured before") == 3
    assert (run / "results.json").read_text() == results
    table = command("study", "acme.yaml", "--vary", "pruner=variance,magnitude", "--out", "study")
    assert "2 done" in table
    assert "variance" in table


def test_what_an_objective_measures_is_on_the_page(acme):
    command, run = acme
    command("report", "run", "--out", "page.html")
    assert "anchor distance" in (run.parent / "page.html").read_text()


PRICES = Path(__file__).parents[2] / "docs" / "architecture.md"


def test_the_price_list_is_what_the_files_say():
    """Each row of the list names its example in the package: so many lines, in that one file."""
    row = r"^\| [^|]+ \| (\d+) \| (\d+) \| `tests/plugin/acme/(\w+)\.py` \|"
    rows = re.findall(row, PRICES.read_text(), re.MULTILINE)
    assert {name for _, _, name in rows} == {file.stem for file in (HERE / "acme").glob("[a-z]*.py")}
    for files, lines, name in rows:
        assert files == "1"
        assert int(lines) == len((HERE / "acme" / f"{name}.py").read_text().splitlines()), name
