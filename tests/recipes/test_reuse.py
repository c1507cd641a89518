"""A figure is taken over only where all that it depends on is the same."""

import shutil
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from hydraprune.core.errors import DataError
from hydraprune.core.files import read_json, write_json
from hydraprune.data.digits import Digits
from hydraprune.recipes import measure as measuring
from hydraprune.recipes.runner import run
from hydraprune.recipes.stages import Bench
from hydraprune.report import rows
from hydraprune.runs.checkpoint import open_checkpoint
from hydraprune.runs.records import measured
from recipes.tiny import TINY, timeless, tiny

GONE = ("made", "images", "digest")
PGD = {"kind": "pgd", "steps": 2, "restarts": 1}


def recipe(*attacks, samples=None, **stage):
    """The tiny recipe up to its pre-training, which is then evaluated."""
    evaluate = {"kind": "evaluate", "attacks": list(attacks) or [PGD], "samples": samples, **stage}
    return type(tiny()).parse(TINY | {"stages": [TINY["stages"][0], evaluate]}, "reuse")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that measured ten images. Not to be changed."""
    out = tmp_path_factory.mktemp("trained") / "run"
    run(recipe(samples=10), out)
    return out


@pytest.fixture
def again(trained, tmp_path):
    """Runs another evaluation into a copy of the run."""
    shutil.copytree(trained, tmp_path / "run")

    def call(*attacks, **settings):
        (record,) = run(recipe(*attacks, **settings), tmp_path / "run")
        return record

    return call


@pytest.fixture
def fresh(trained, tmp_path):
    """Runs an evaluation of the same network where nothing was measured before."""
    nothing = shutil.ignore_patterns("results.json", "verdicts.*", "examples.*")
    shutil.copytree(trained, tmp_path / "fresh", ignore=nothing)

    def call(*attacks, **settings):
        (record,) = run(recipe(*attacks, **settings), tmp_path / "fresh")
        return record

    return call


@pytest.mark.parametrize(
    ("attack", "stage"),
    [
        (PGD | {"step_size": 0.001}, {}),
        (PGD | {"step_size": 0.001}, {"samples": 5}),
        (PGD, {}),
        (PGD, {"batch_size": 30}),
        ({"kind": "fmn", "steps": 5, "loss": "dlr"}, {}),
    ],
)
def test_the_figure_is_that_of_the_present_settings(again, fresh, attack, stage):
    """Ten images first; then all of them, fewer, in other batches, or with settings that the name does not show."""
    one, other = again(attack, **stage), fresh(attack, **stage)
    name = next(iter(other.robust_accuracy))
    assert one.robust_accuracy[name] == other.robust_accuracy[name]
    assert (one.tried(name), one.made[name]) == (other.tried(name), other.made[name])


def test_what_is_known_is_not_measured_again(again, monkeypatch):
    before = again(samples=10)
    monkeypatch.setattr(measuring, "evaluate", lambda *_, **__: pytest.fail("measured again"))
    assert again(samples=10) == before
    assert again(samples=7) == before


def test_a_record_that_does_not_say_how_it_was_made_is_measured_again(again, fresh, tmp_path):
    path = tmp_path / "run" / "results.json"
    old = [{key: value for key, value in one.items() if key not in GONE} for one in read_json(path)]
    write_json(path, [one | {"robust_accuracy": {"pgd-2x1": 0.987}} for one in old])
    assert timeless(again(samples=10).plain()) == timeless(fresh(samples=10).plain())


def changed(monkeypatch, split, what):
    """One pixel, or one label, of one image is another one."""
    original = Digits.read

    def read(self):
        train, test, classes = original(self)
        images = {"train": train, "test": test}[split]
        pixels, labels = images._pixels.clone(), images.labels.clone()
        if what == "image":
            pixels[0, 0, 0, 0] ^= 1
        else:
            labels[0] = (labels[0] + 1) % 10
        other = images.like(pixels, labels)
        return (other, test, classes) if split == "train" else (train, other, classes)

    monkeypatch.setattr(Digits, "read", read)


@pytest.mark.parametrize("what", ["image", "label"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_data_that_changed_are_refused_by_name(trained, tmp_path, monkeypatch, split, what):
    """With a hundred images drawn of 1,297, the first training image may not be among them: take all."""
    whole = type(tiny()).parse(recipe(samples=10).plain() | {"data": {"kind": "digits"}}, "whole")
    short = whole.model_copy(update={"stages": whole.stages[:1]})
    run(short, tmp_path / "run")
    changed(monkeypatch, split, what)
    named = "(train|validation)" if split == "train" else "test"
    with pytest.raises(DataError, match=rf"run was made from: other images or labels in {named} \(\w+ then, \w+ now"):
        run(whole, tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()


def test_other_images_that_are_asked_for_have_a_folder_of_their_own(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "run")
    stage = tmp_path / "run" / "pretrain"
    before = (stage / "verdicts.safetensors").read_bytes()
    there = recipe(samples=20)
    changed(monkeypatch, "test", "image")
    data = there.data.load()
    checkpoint = open_checkpoint(stage)
    bench = Bench(there, data, there.trainer.machine(), Console(quiet=True))
    subject = bench.subject(checkpoint)
    place = measuring.place(checkpoint, subject)
    assert place == stage / f"images-{subject.images}"
    record = there.stages[1].measured(checkpoint, bench)
    write_json(place / "evaluation.json", record.plain())
    assert (stage / "verdicts.safetensors").read_bytes() == before
    told: list[str] = []
    found = measured(tmp_path / "run", told.append)["pretrain"].record
    assert found.samples == 10
    assert ["other test images" in line for line in told] == [True]


def test_a_later_measurement_in_another_way_does_not_replace_that_of_the_recipe(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "run")
    stage = tmp_path / "run" / "pretrain"
    own = read_json(tmp_path / "run" / "results.json")[0]
    later = own | {"made": {"pgd-2x1": "otherwise", "fgsm": "f"}, "robust_accuracy": {"pgd-2x1": 0.9, "fgsm": 0.8}}
    write_json(stage / "evaluation.json", later)
    (row,) = rows([tmp_path / "run"])
    assert row["figures"]["pgd-2x1"]["mean"] == own["robust_accuracy"]["pgd-2x1"]
    assert row["figures"]["fgsm"]["mean"] == 0.8


def test_digests_are_of_content(tmp_path):
    one, other = tiny().data.load(), tiny("data.flip=false").data.load()
    assert one.digests() == other.digests()
    assert len(set(one.digests().values())) == 3
    assert one.test.take(10).digest() != one.test.digest()
    swapped = one.test.subset(torch.tensor([1, 0, *range(2, len(one.test))]))
    assert swapped.digest() != one.test.digest()


def killed_at(monkeypatch, place, count):
    """The measurement dies after so many batches of attacks are on file."""
    left, saved = [count], measuring.save_verdicts

    def save(path, *arguments, **settings):
        saved(path, *arguments, **settings)
        left[0] -= path.name == "evaluation.state.safetensors"
        if left[0] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "save_verdicts", save)


def test_an_attack_that_was_killed_is_no_figure_until_it_goes_on(again, fresh, tmp_path, monkeypatch):
    slow = PGD | {"steps": 3}
    with monkeypatch.context() as patch:
        killed_at(patch, tmp_path, 2)
        with pytest.raises(KeyboardInterrupt):
            again(slow, batch_size=100)
    other = again("fgsm", batch_size=100)

    assert "pgd-3x1" not in other.robust_accuracy
    state = tmp_path / "run" / "pretrain" / "evaluation.state.safetensors"
    assert state.exists()
    seen, search = [], measuring.evaluate

    def noted(*arguments, known, **settings):
        seen.append({name: len(verdict) for name, verdict in known.survived.items()} if known else {})
        return search(*arguments, known=known, **settings)

    monkeypatch.setattr(measuring, "evaluate", noted)
    whole = again(slow, "fgsm", batch_size=100)
    assert seen[0]["pgd-3x1"] == 200
    assert not state.exists()
    expected = fresh(slow, "fgsm", batch_size=100)
    names = ("pgd-3x1", "fgsm")
    assert [whole.robust_accuracy[n] for n in names] == [expected.robust_accuracy[n] for n in names]


def test_a_recipe_keeps_its_figure_beside_that_of_another_seed(trained, tmp_path):
    """A command measures the same attack in another way; then the recipe asks for one attack more."""
    shutil.copytree(trained, tmp_path / "run")
    checkpoint, here = open_checkpoint(tmp_path / "run" / "pretrain"), recipe(samples=20).model_copy(update={"seed": 5})
    here.stages[1].measured(checkpoint, Bench(here, here.data.load(), here.trainer.machine(), Console(quiet=True)))
    both = recipe(PGD, "fgsm", samples=20)
    (record,) = run(both, tmp_path / "run")
    (expected,) = run(both, tmp_path / "fresh")
    assert (record.robust_accuracy, record.made) == (expected.robust_accuracy, expected.made)
    assert run(both, tmp_path / "run") == [record]


def test_certificates_on_fewer_images_do_not_replace_those_on_more():
    from hydraprune.core.results import Certified, Record

    def certified(samples, radii):
        values = {"sigma": 0.25, "n0": 10, "n": 100, "alpha": 0.001, "precision": "float32", "clean_accuracy": 0.5}
        figures = {"average_certified_radius": 0.1, "abstention_rate": 0.0}
        one = Certified(samples=samples, certified_accuracy=radii, **values, **figures)
        base = {"stage": "s", "sparsity": 0, "kept": 1, "total": 1, "clean_accuracy": 0.5, "seed": 0, "seconds": 1.0}
        return Record(**base, samples=samples, certified={"c": one}, made={"c": "f"})

    many, few = certified(60, {0.0: 0.6}), certified(10, {0.0: 0.7})
    assert many.joined(few).certified["c"].samples == few.joined(many).certified["c"].samples == 60
    assert many.joined(certified(60, {0.5: 0.2})).certified["c"].certified_accuracy == {0.5: 0.2}


def test_a_network_that_was_trained_without_an_adversary_has_a_folder_for_each(trained):
    checkpoint, here = open_checkpoint(trained / "pretrain"), recipe(samples=10)
    natural = replace(checkpoint, meta=checkpoint.meta.model_copy(update={"threat": None}))
    subject = Bench(here, here.data.load(), here.trainer.machine(), Console(quiet=True)).subject(natural)
    assert measuring.place(checkpoint, subject) == checkpoint.folder
    assert measuring.place(natural, subject) == checkpoint.folder / subject.threat.label
    assert measuring.place(natural, replace(subject, threat=None)) == checkpoint.folder
