"""Commands on what strangers sent: exit code 2 and one line, nothing run, nothing outside of it read."""

import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

import hydraprune as hp
from hydraprune.core.files import read_json, write_json
from hydraprune.core.sealed import seal
from hydraprune.recipes.runner import run
from hydraprune.runs.files import META
from recipes.tiny import TINY, tiny

CANARY = "canary-in-the-mine"
MODULE = """
from pathlib import Path
from torch import nn
Path({mark!r}).touch()
def sing(num_classes, width=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one stage. Not to be changed."""
    out = tmp_path_factory.mktemp("trained") / "run"
    values = tiny("stages.pretrain.epochs=1").plain()
    values["stages"] = [values["stages"][0], {"kind": "evaluate", "attacks": ["fgsm"], "samples": 20}]
    run(type(tiny()).parse(values, "trained"), out)
    return out


@pytest.fixture
def stranger(trained, tmp_path):
    """A run folder that may be changed, beside a file that is nobody's business."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "notes.txt").write_text(CANARY)
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A module `canary` that can be imported and leaves a file behind; and that file."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "canary.py").write_text(MODULE.format(mark=str(tmp_path / "sung")))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    yield tmp_path / "sung"
    sys.modules.pop("canary", None)


@pytest.fixture
def refused(command):
    def call(*arguments):
        code, out, err = command(*arguments)
        assert code == 2
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert err.rstrip("\n").isprintable()
        assert CANARY not in out + err
        return err

    return call


def sign(folder, **entries):
    found = read_json(folder / META) | entries
    (folder / META).write_text(json.dumps(found | {"digest": seal(found)}))


COMMANDS = {
    "evaluate": ["--attacks", "fgsm", "--samples", "5"],
    "check": ["--samples", "5"],
    "benchmark": ["--samples", "5"],
    "verify": ["--samples", "5", "--bounds", "ibp"],
    "certify": ["--sigma", "0.25", "--samples", "1", "--n", "10"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_calls_what_a_checkpoint_names(refused, stranger, canary, name):
    sign(stranger / "pretrain", net={"kind": "canary:sing", "options": {"width": 3}})
    err = refused(name, stranger / "pretrain", *COMMANDS[name])
    assert "would import and call canary:sing with options {'width': 3}; if you trust" in err
    assert "--trust-code" in err
    assert not canary.exists()


def test_nor_what_a_checkpoint_names_whose_images_are_tried(refused, stranger, canary, tmp_path):
    other = shutil.copytree(stranger / "pretrain", tmp_path / "other")
    sign(other, net={"kind": "canary:sing"})
    evaluate = ["evaluate", stranger / "pretrain", *COMMANDS["evaluate"], "--transfer-from", other]
    assert "would import and call canary:sing" in refused(*evaluate)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["evaluate", "verify"])
def test_what_is_trusted_is_named_and_called(command, tmp_path, canary, name):
    values = {**TINY, "net": {"kind": "canary:sing", "options": {"width": 3}}, "stages": TINY["stages"][:1]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    assert command("run", "mine.yaml", "--out", "own", "--set", "stages.pretrain.epochs=1")[0] == 0
    assert command("run", "mine.yaml", "--out", "own", "--set", "stages.pretrain.epochs=1")[0] == 0
    canary.unlink()
    sys.modules.pop("canary")
    code, out, err = command(name, "own/pretrain", *COMMANDS[name], "--trust-code")
    assert (code, err) == (0, "")
    assert out.startswith("calling canary:sing with options {'width': 3}, named by own/pretrain\n")
    assert canary.exists()


def test_a_network_of_ones_own_takes_part_in_every_stage(command, tmp_path, canary):
    """Whoever gives the recipe trusts its factory, also where a later stage loads what an earlier one saved."""
    pretrain, prune, _, evaluate = TINY["stages"]
    prune = prune | {"objective": {"kind": "distill", "steps": 1}, "networks": {"teacher": "pretrain"}}
    stages = [pretrain, prune, evaluate | {"of": ["prune"]}]
    values = {**TINY, "net": {"kind": "canary:sing"}, "stages": stages}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    code, _, err = command("run", "mine.yaml", "--out", "own")
    assert (code, err) == (0, "")


def test_but_no_other_factory_does(refused, stranger, canary):
    """A stage that is there already, and says that it is another network than the recipe's."""
    sign(stranger / "pretrain", net={"kind": "canary:sing"})
    (stranger / "results.json").unlink()
    assert "would import and call canary:sing" in refused("run", stranger / "recipe.yaml", "--out", stranger)
    assert not canary.exists()


def test_a_recipe_in_a_folder_makes_no_other_file_be_read(refused, stranger, tmp_path):
    (stranger / "recipe.yaml").write_text(f"extends: {tmp_path / 'secret' / 'notes.txt'}\n")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(TINY))
    assert "recipe.yaml: unknown key 'extends'" in refused("run", "mine.yaml", "--out", stranger)


@pytest.mark.parametrize(
    "command_line", [["run", "FILE", "--out", "x"], ["show", "FILE"], ["study", "FILE", "--out", "x"]]
)
@pytest.mark.parametrize(
    "content",
    [
        "extends: SECRET",
        "recipe: SECRET\nname: a\ngrid: {seed: [0]}",
        "recipe: {extends: SECRET}\nname: a\ngrid: {seed: [0]}",
        "extends: FILE",
        "name: !!python/object/apply:os.system ['touch sung']",
        "name: " + "[" * 5000,
        "a: &a [1]\n" + "".join(f"{x}: &{x} [{','.join([f'*{y}'] * 9)}]\n" for y, x in pairwise("abcdefghi")),
        "\x1b[31mname: \x1b",
        b"name: \xff\xfe",
    ],
    ids=["extends", "recipe", "recipe that extends", "itself", "tag", "deep", "aliases", "escapes", "bytes"],
)
def test_files_of_recipes_and_studies(refused, tmp_path, command_line, content):
    (tmp_path / "secret.txt").write_text(f"- {CANARY}")
    file = tmp_path / "theirs.yaml"
    if isinstance(content, str):
        content = content.replace("SECRET", str(tmp_path / "secret.txt")).replace("FILE", str(file)).encode()
    file.write_bytes(content)
    refused(*(str(file) if word == "FILE" else word for word in command_line))
    assert not (tmp_path / "sung").exists()
    assert not (tmp_path / "x").exists()


STAGES = ["../secret", "/etc", "pretrain/../../secret", "a\\b", "a\x1b[31m", "", ".", "a//b", "a" * 300]


@pytest.mark.parametrize("stage", STAGES)
def test_records_of_folders_outside_are_left_out(command, stranger, tmp_path, stage):
    (record,) = read_json(stranger / "results.json")
    del record["digest"]
    outside = tmp_path / "secret"
    write_json(outside / "evaluation.json", record | {"robust_accuracy": {CANARY: 0.5}})
    write_json(stranger / "results.json", [record | {"stage": stage}])
    code, out, err = command("table", stranger)
    assert (code, err) == (2, f"error: nothing that was measured in {stranger} is whole; measure again\n")
    assert "left out: " in out
    assert "stage: " in out
    assert CANARY not in out
    code, out, err = command("report", stranger)
    assert (code, err) == (0, "")
    page = Path("report.html").read_text()
    assert CANARY not in out + page
    assert "expected a path inside of the run" in page or "stage: " in page


LINKS = ["results.json", "pretrain/checkpoint.json", "pretrain/evaluation.json", "pretrain/linf-0.2/evaluation.json"]


@pytest.mark.parametrize("name", LINKS)
def test_links_that_lead_outside_are_left_out(command, stranger, tmp_path, name):
    (record,) = read_json(stranger / "results.json")
    del record["digest"]
    content = [record] if name == "results.json" else record | {"robust_accuracy": {CANARY: 0.5}}
    write_json(tmp_path / "secret" / "file.json", content)
    (stranger / name).parent.mkdir(exist_ok=True)
    (stranger / name).unlink(missing_ok=True)
    (stranger / name).symlink_to(tmp_path / "secret" / "file.json")
    code, out, err = command("table", stranger)
    assert code == (2 if name == "results.json" else 0)
    assert "leads outside of" in out
    assert CANARY not in out + err
    code, out, err = command("report", stranger)
    assert (code, err) == (0, "")
    page = Path("report.html").read_text()
    assert CANARY not in out + page
    assert "leads outside of" in page


@pytest.mark.parametrize("name", ["recipe.yaml", "environment.json", "metrics.jsonl", "failure.json"])
def test_nor_does_the_page_show_what_links_lead_to(command, stranger, tmp_path, name):
    text = {"recipe.yaml": f"name: {CANARY}", "metrics.jsonl": f'{{"stage": "{CANARY}", "epoch": 1}}\n'}
    (tmp_path / "secret" / "file").write_text(text.get(name, json.dumps({"error": CANARY})))
    (stranger / name).unlink(missing_ok=True)
    (stranger / name).symlink_to(tmp_path / "secret" / "file")
    code, out, err = command("report", stranger)
    assert (code, err) == (0, "")
    assert CANARY not in out + Path("report.html").read_text()


def test_a_folder_that_is_a_link_is_what_its_user_named(command, stranger, tmp_path):
    (tmp_path / "link").symlink_to(stranger)
    assert command("table", "link")[0] == 0
    code, _, err = command("evaluate", "link/pretrain", *COMMANDS["evaluate"])
    assert (code, err) == (0, "")


def test_a_network_for_another_threat_is_not_written_outside(refused, stranger, tmp_path):
    (stranger / "pretrain" / "linf-0.2").symlink_to(tmp_path / "secret")
    arguments = ["evaluate", stranger / "pretrain", *COMMANDS["evaluate"], "--set", "threat.eps=0.2"]
    assert "leads outside of" in refused(*arguments)
    assert os.listdir(tmp_path / "secret") == ["notes.txt"]


def started(arguments, folder):
    """A command as a process of its own, in `folder`."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    line = [sys.executable, *arguments]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, env={**environment, "COLUMNS": "200"})


REMEDY = "start with `PYTHONPATH=.` if it lies in the working directory"


def test_modules_of_the_working_directory_are_not_imported(tmp_path):
    """Neither by a command, nor by the processes that it starts: by no name that they look for."""
    values = {"name": "small", "recipe": {**TINY, "stages": TINY["stages"][:1]}, "grid": {"seed": [0]}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values | {"set": {"net.kind": "canary:sing"}}))
    for name in ("canary", "torch", "timm", "pickle", "signal", "multiprocessing"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path)!r} + '/sung-by-{name}', 'w')\n")
    # What the installed script has in its path, which lies elsewhere.
    script = "import sys; sys.path.remove(''); from hydraprune.cli import main; main()"
    found = started(["-c", script, "study", "mine.yaml", "--out", "out"], tmp_path)
    assert found.returncode == 1, found.stderr
    assert REMEDY in found.stdout
    assert not list(tmp_path.glob("sung*"))


def test_python_m_does_the_same_as_the_command(stranger, tmp_path):
    """And has not the working directory in its path, where a factory may lie."""
    (tmp_path / "canary.py").write_text(MODULE.format(mark=str(tmp_path / "sung")))
    sign(stranger / "pretrain", net={"kind": "canary:sing"})
    found = started(["-m", "hydraprune", "evaluate", "run/pretrain", "--samples", "5", "--trust-code"], tmp_path)
    assert (found.returncode, found.stdout) == (2, "calling canary:sing with options {}, named by run/pretrain\n")
    assert REMEDY in found.stderr
    assert found.stderr.count("\n") == 1
    assert not (tmp_path / "sung").exists()


def test_a_checkpoint_of_an_earlier_version_says_what_to_do(refused, stranger):
    """Its network is loaded, but its recipe has settings that are gone."""
    recipe = json.loads((stranger / "pretrain" / META).read_text())["recipe"]
    sign(stranger / "pretrain", recipe={**recipe, "compare": None})
    complaint = refused("evaluate", stranger / "pretrain")
    assert "recipe: unknown key 'compare'" in complaint
    assert "run the experiment again into a new folder, or load its networks in Python (hydraprune.load)" in complaint
    assert hp.load(stranger / "pretrain", trust_code=True)[1].kept > 0
