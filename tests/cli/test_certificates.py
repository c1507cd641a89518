"""`hydraprune verify` and `hydraprune certify`: what they print and write, and how they fail."""

import json
import shutil
from pathlib import Path

import pytest

from hydraprune.recipes.runner import run
from recipes.tiny import tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A dense network of the tiny recipe."""
    out = tmp_path_factory.mktemp("trained") / "run"
    values = tiny().plain()
    values["stages"] = values["stages"][:1]
    run(type(tiny()).parse(values, "trained"), out)
    return out


@pytest.fixture
def command(command, trained):
    """The same beside a run folder."""
    shutil.copytree(trained, "run")
    return command


def test_verify(command):
    arguments = ["verify", "run/pretrain", "--bounds", "ibp,crown-ibp", "--samples", 60]
    code, out, err = command(*arguments, "--eps", "1/5000")
    assert (code, err) == (0, "")
    written = json.loads(Path("run/pretrain/linf-0.0002/verification.json").read_text())
    assert list(written["verified"]) == ["ibp", "crown-ibp"]
    assert written["threat"] == {"norm": "linf", "eps": 1 / 5000}
    for name, proof in written["verified"].items():
        lines = Path(f"run/pretrain/verified-{name},eps=0.0002.jsonl").read_text().splitlines()
        verdicts = [json.loads(line)["verified"] for line in lines]
        assert (proof["samples"], proof["verified_accuracy"]) == (60, sum(verdicts) / 60)
        assert f"{name} {proof['verified_accuracy']:.3f}" in out
    assert written["verified"]["crown-ibp"]["verified_accuracy"] > 0
    # The radius of the recipe, 0.1, is another one and has files of its own.
    code, out, err = command(*arguments)
    assert (code, err) == (0, "")
    wide = json.loads(Path("run/pretrain/verification.json").read_text())
    assert wide["threat"]["eps"] == 0.1
    assert wide["verified"]["ibp"]["verified_accuracy"] <= written["verified"]["ibp"]["verified_accuracy"]
    assert wide["verified"]["ibp"]["mean_margin"] < written["verified"]["ibp"]["mean_margin"]
    assert "written to run/pretrain/verification.json" in out


def test_certify(command):
    code, out, err = command(
        "certify", "run/pretrain", "--sigma", "0.25", "--n0", 10, "--n", 50, "--alpha", 0.01, "--every", 2,
        "--samples", 12, "--radii", "0,110/255",
    )  # fmt: skip
    assert (code, err) == (0, "")
    written = json.loads(Path("run/pretrain/certification.json").read_text())
    found = written["certified"]["sigma=0.25,n=50"]
    assert (found["samples"], found["n0"], found["alpha"]) == (6, 10, 0.01)
    assert list(map(float, found["certified_accuracy"])) == [0, 110 / 255]
    lines = Path("run/pretrain/certified-sigma=0.25,n=50.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == [0, 2, 4, 6, 8, 10]
    assert all(sum(json.loads(line)["counts"]) == 50 for line in lines)
    assert f"sigma=0.25,n=50 {found['certified_accuracy']['0.0']:.3f} at 0" in out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["verify", "run/pretrain", "--bounds", "ibp,crwn"], "verification.bounds.1: unknown bound 'crwn'"),
        (["verify", "run/pretrain", "--eps", "2"], "recipe.threat: eps 2 is above 1; pixels lie in [0, 1]"),
        (["verify", "run/pretrain", "--eps", "-1"], "recipe.threat.eps: Input should be greater than or equal to 0"),
        (["verify", "run/pretrain", "--set", "threat.norm=l2"], "bounds hold for boxes, not for the norm 'l2'"),
        (["verify", "run/pretrain", "--set", "threat=null"], "bounds need a threat model; add `threat:"),
        (["verify", "gone"], "gone holds no finished checkpoint"),
        (["certify", "run/pretrain", "--sigma", "0"], "certification.smoothing.sigma: Input should be greater than 0"),
        (["certify", "run/pretrain", "--sigma", "1/4", "--alpha", "1"], "smoothing.alpha: Input should be less than 1"),
        (["certify", "run/pretrain", "--sigma", "1/4", "--n", "0"], "smoothing.n: Input should be greater"),
        (["certify", "run/pretrain", "--sigma", "1/4", "--radii", "0,-1"], "certification.radii.1: Input should be"),
        (["certify", "run/pretrain", "--sigma", "1/4", "--radii", "0;1"], "'0;1' is not a number or a fraction"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(command, arguments, complaint):
    samples = [] if "gone" in arguments else ["--samples", "4"]
    code, _, err = command(*arguments, *samples)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert complaint in err


def test_bounds_are_listed(command):
    code, out, _ = command("list")
    assert code == 0
    for name in ("ibp", "crown-ibp", "best"):
        assert f"  {name} " in out


def test_a_later_proof_joins_what_an_earlier_command_found(command):
    for bound, samples in (("ibp", "6"), ("crown", "4"), ("ibp", "3")):
        code, _, err = command("verify", "run/pretrain", "--bounds", bound, "--samples", samples)
        assert (code, err) == (0, "")
    found = json.loads(Path("run/pretrain/verification.json").read_text())["verified"]
    assert {bound: proof["samples"] for bound, proof in found.items()} == {"ibp": 6, "crown": 4}
