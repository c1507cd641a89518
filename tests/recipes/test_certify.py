"""A stage that certifies: what it writes, and what it does not do twice."""

import json
import shutil
import sys

import pytest

from hydraprune.core.errors import SpecError
from hydraprune.evaluation import smoothing, verification
from hydraprune.recipes.certify import Certify
from hydraprune.recipes.evaluate import Evaluate
from hydraprune.recipes.library import load_recipe
from hydraprune.recipes.runner import run
from hydraprune.report import as_markdown, rows
from recipes.tiny import contents, tiny

FILES = {"verified-ibp,eps=0.02.jsonl", "verified-best,eps=0.02.jsonl", "certified-sigma=0.25,n=60.jsonl"}
SMOOTHING = {"sigma": 0.25, "n0": 10, "n": 60, "alpha": 0.01}
STAGE = {
    "kind": "certify", "of": ["pretrain", "finetune"], "samples": 10, "batch_size": 4,
    "bounds": ["ibp", "best"], "smoothing": SMOOTHING, "radii": [0, "110/255"],
}  # fmt: skip


def certified(*stages, **changes):
    """The tiny recipe at a radius that bounds can prove, with these stages in place of its evaluation."""
    values = tiny("threat.eps=0.02").plain()
    values["stages"][3:] = stages or [STAGE | changes]
    return type(tiny()).parse(values, "certified")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, run(certified(), out)


def refuse(*arguments, **settings):
    raise AssertionError("nothing is left to do")


def test_the_files_are_the_records_of_each_network(whole):
    out, records = whole
    assert [record.stage for record in records] == ["pretrain", "finetune"]
    for record in records:
        assert {path.name for path in (out / record.stage).glob("*.jsonl")} == FILES
        lines = {
            name: [json.loads(line) for line in (out / record.stage / name).read_text().splitlines()] for name in FILES
        }
        right = [line["prediction"] == line["label"] for line in lines["verified-ibp,eps=0.02.jsonl"]]
        assert [line["index"] for line in lines["verified-best,eps=0.02.jsonl"]] == list(range(10))
        assert list(record.verified) == ["ibp", "best"]
        for name, proof in record.verified.items():
            verdicts = [line["verified"] for line in lines[f"verified-{name},eps=0.02.jsonl"]]
            assert (proof.samples, proof.verified_accuracy) == (10, sum(verdicts) / 10)
            assert proof.clean_accuracy == record.clean_accuracy == sum(right) / 10
        assert record.verified["ibp"].verified_accuracy <= record.verified["best"].verified_accuracy
        (found,) = record.certified.values()
        smooth = lines["certified-sigma=0.25,n=60.jsonl"]
        hits = [line["prediction"] == line["label"] for line in smooth]
        radii = [line["radius"] for line in smooth]
        assert (found.sigma, found.n0, found.n, found.alpha, found.samples) == (0.25, 10, 60, 0.01, 10)
        assert found.certified_accuracy == {
            r: sum(hit and radius >= r for hit, radius in zip(hits, radii, strict=True)) / 10 for r in (0, 110 / 255)
        }
        assert found.average_certified_radius == pytest.approx(
            sum(h * r for h, r in zip(hits, radii, strict=True)) / 10
        )
        assert record.seconds > 0
        assert (record.samples, record.threat.eps) == (10, 0.02)
    assert any(record.verified["best"].verified_accuracy > 0 for record in records)


def test_the_table_shows_them(whole):
    out, records = whole
    (dense, pruned) = rows([out])
    names = ["clean", "verified ibp", "verified best"]
    names += ["certified sigma=0.25,n=60 at 0", "certified sigma=0.25,n=60 at 0.431"]
    assert list(dense["figures"]) == list(pruned["figures"]) == names
    best = records[1].verified["best"].verified_accuracy
    assert (pruned["figures"]["verified best"]["mean"], pruned["figures"]["verified best"]["samples"]) == (best, 10)
    assert f"| {100 * best:.1f} |" in as_markdown([pruned])


def test_a_finished_run_is_not_certified_again(whole, monkeypatch):
    out, records = whole
    monkeypatch.setattr("hydraprune.recipes.training.fit", refuse)
    monkeypatch.setattr(Certify, "measured", refuse)
    monkeypatch.setattr(Evaluate, "measured", refuse)
    assert run(certified(), out) == records


@pytest.mark.parametrize("bomb", [3, 12, 23, 30, 31, 55])
def test_a_kill_between_two_records_changes_nothing(whole, tmp_path, monkeypatch, bomb):
    """Records count from both networks, three files each; bounds are written four images at a time."""
    out, _ = whole
    ledger, left = sys.modules["hydraprune.evaluation.records"].Ledger, [bomb]
    add = ledger.add

    def killing(self, record):
        add(self, record)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    shutil.copytree(out, tmp_path / "run", ignore=shutil.ignore_patterns("results.json", "verified*", "certified*"))
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "add", killing)
        with pytest.raises(KeyboardInterrupt):
            run(certified(), tmp_path / "run")
    again = []
    monkeypatch.setattr(ledger, "add", lambda self, record: (again.append(record), add(self, record)))
    run(certified(), tmp_path / "run")
    assert len(again) == 60 - bomb
    found, expected = contents(tmp_path / "run"), contents(out)
    for name, value in expected.items():
        if not name.endswith(".jsonl"):
            assert found[name] == value
            continue
        assert len(found[name]) == len(value)
        for left_line, right_line in zip(found[name], value, strict=True):
            assert left_line.keys() == right_line.keys()
            assert left_line.get("verified") == right_line.get("verified")
            assert left_line.get("counts") == right_line.get("counts")


def test_what_is_added_later_is_all_that_is_measured(tmp_path, monkeypatch):
    one = certified({**STAGE, "of": None, "bounds": ["ibp"], "smoothing": None})
    (before,) = run(one, tmp_path)
    asked, original = [], verification.margin_bounds

    def noted(net, x, y, threat, method):
        asked.append(method.name)
        return original(net, x, y, threat, method)

    monkeypatch.setattr(verification, "margin_bounds", noted)
    monkeypatch.setattr("hydraprune.recipes.training.fit", refuse)
    fgsm = {"kind": "evaluate", "attacks": ["fgsm"], "samples": 20}
    more = certified({**STAGE, "of": None, "bounds": ["ibp", {"kind": "crown-ibp", "slope": "zero"}]}, fgsm)
    (after,) = run(more, tmp_path)
    assert set(asked) == {"crown-ibp-zero"}
    assert list(after.verified) == ["ibp", "crown-ibp-zero"]
    assert after.verified["ibp"] == before.verified["ibp"]
    assert list(after.certified) == ["sigma=0.25,n=60"]
    assert (after.samples, after.verified["ibp"].samples, after.robust_samples) == (20, 10, {})
    assert load_recipe(str(tmp_path / "recipe.yaml")) == more
    # More images go on from the records, and another radius is read from them.
    noted_before, again = len(asked), certified({**STAGE, "of": None, "bounds": ["ibp"], "samples": 13}, fgsm)
    (longer,) = run(again, tmp_path)
    assert longer.verified["ibp"].samples == 13
    assert len(asked) - noted_before <= 2
    assert longer.certified["sigma=0.25,n=60"].samples == 13
    monkeypatch.setattr(smoothing, "_votes", refuse)
    wider = certified({**STAGE, "of": None, "bounds": [], "radii": [0, 0.1]}, fgsm)
    (last,) = run(wider, tmp_path)
    assert list(last.certified["sigma=0.25,n=60"].certified_accuracy) == [0, 0.1]
    assert last.verified == longer.verified


def test_other_settings_of_the_noise_are_certified_anew(tmp_path, monkeypatch):
    """The name of the figure is the same: sigma and n. The record and the file must be of the new settings alone."""
    (before,) = run(certified({**STAGE, "of": None, "bounds": []}), tmp_path / "run")
    path = tmp_path / "run" / "finetune" / "certified-sigma=0.25,n=60.jsonl"
    assert len(path.read_text().splitlines()) == 10
    other = certified({**STAGE, "of": None, "bounds": [], "samples": 6, "smoothing": SMOOTHING | {"n0": 20}})
    (after,) = run(other, tmp_path / "run")
    (fresh,) = run(other, tmp_path / "fresh")
    assert (after.certified, after.made) == (fresh.certified, fresh.made)
    assert [after.certified["sigma=0.25,n=60"].n0, len(path.read_text().splitlines())] == [20, 6]
    assert before.certified["sigma=0.25,n=60"].n0 == 10
    # The first ones lie aside, and are taken back.
    certify = "hydraprune.evaluation.smoothing._certified"
    monkeypatch.setattr(certify, refuse)
    (back,) = run(certified({**STAGE, "of": None, "bounds": []}), tmp_path / "run")
    assert (back.certified, back.made) == (before.certified, before.made)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"bounds": [], "smoothing": None}, "nothing to certify with; add `bounds:"),
        ({"bounds": ["ibp", "ibp"]}, "two bounds are called 'ibp'"),
        ({"bounds": ["ipb"]}, "unknown bound 'ipb'; did you mean 'ibp'"),
        ({"of": ["finetun"]}, "stage 'certify' evaluates 'finetun', no fit before it; did you mean 'finetune'"),
        ({"smoothing": {"sigma": 0}}, r"stages\.3\.smoothing\.sigma: Input should be greater than 0"),
        ({"smoothing": {"n": 10}}, r"stages\.3\.smoothing\.sigma: Field required"),
        ({"smoothing": SMOOTHING | {"alpha": 1.0}}, r"smoothing\.alpha: Input should be less than 1"),
        ({"radii": [-1]}, r"radii\.0: Input should be greater than or equal to 0"),
        ({"samples": 0}, "samples"),
    ],
)
def test_mistakes_are_found_before_anything_runs(changes, complaint):
    with pytest.raises(SpecError, match=complaint):
        certified(**changes)


@pytest.mark.parametrize("threat", [None, {"norm": "l2", "eps": 0.5}])
def test_bounds_need_a_box_and_smoothing_none(threat):
    values = certified().plain() | {"threat": threat, "objective": {"kind": "natural"}}
    with pytest.raises(SpecError, match="stage 'certify' has bounds, which need a threat model of norm linf"):
        type(tiny()).parse(values, "recipe")
    values["stages"][3]["bounds"] = []
    assert type(tiny()).parse(values, "recipe").stages[3].smoothing.n == 60
