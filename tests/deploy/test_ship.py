"""What an export promises, whatever its format."""

import json
import os
import signal
import subprocess
import sys
import time
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file

import hydraprune as hp
from hydraprune.core.errors import CheckpointError, HydrapruneError, SpecError, TrainingError
from hydraprune.core.files import write_json
from hydraprune.core.sealed import with_digest
from hydraprune.deploy.base import Format
from hydraprune.deploy.dense import DenseFormat
from hydraprune.deploy.opened import opened
from hydraprune.runs.checkpoint import open_checkpoint, save
from hydraprune.runs.lock import own
from hydraprune.runs.manifest import MANIFEST, PROBE, Manifest, beside, in_words, read_manifest
from hydraprune.runs.single import write_dense

ATTACKS = [{"kind": "pgd", "steps": 3, "restarts": 1}]
FORMS = [{"kind": "packed"}, {"kind": "packed", "values": "int8"}, {"kind": "dense"}, {"kind": "hub"}]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_manifest_is_true_of_what_lies_there(folder, tmp_path, form):
    out = tmp_path / "out"
    manifest = hp.export(folder, out, form)
    assert read_manifest(out) == manifest
    source, meta = hp.load(folder)
    assert (manifest.kept, manifest.total, manifest.threat) == (meta.kept, meta.total, meta.threat)
    assert manifest.dense_bytes == sum(tensor.nbytes for tensor in load_file(folder / "model.safetensors").values())
    if not out.is_dir():
        assert manifest.bytes == out.stat().st_size
    probe = load_file(beside(out, PROBE))
    with torch.no_grad():
        expected = source.eval()(probe["images"] / 255)
        found = opened(out)(probe["images"] / 255)
    assert torch.allclose(probe["logits"], expected, atol=1e-6)
    assert float((found - expected).abs().max()) == pytest.approx(manifest.difference, abs=1e-6)
    assert manifest.rounds == (form.get("values") == "int8") == (manifest.difference > 0)
    again, _ = hp.load(out)
    masks = hp.MaskView(again).masks()
    for name, mask in hp.MaskView(source).masks().items():  # a file of zeros has none where nothing is removed
        assert torch.equal(mask, masks[name]) if name in masks else bool(mask.all())


def test_by_default_it_goes_beside_the_checkpoint(folder):
    hp.export(folder)
    hp.export(folder, format="dense")
    hp.export(folder, format={"kind": "packed", "values": "int8"})
    names = {"packed-float32.hpk", "packed-int8.hpk", "dense.safetensors"}
    assert names < {path.name for path in (folder / "export").iterdir()}
    with pytest.raises(SpecError, match="is no folder to write into; say where to"):
        hp.export(folder / "export/packed-int8.hpk")
    hp.load(folder)  # which is as it was


def test_what_is_shipped_is_measured_beside_its_source(folder, tmp_path, digits):
    worth = hp.Worth(attacks=ATTACKS, samples=60)
    manifest = hp.export(folder, tmp_path / "a", {"kind": "packed", "values": "int8"}, data=digits, worth=worth)
    net, _ = hp.load(tmp_path / "a")
    again = hp.evaluate(
        net,
        digits.test.take(60).batches(60, seed=0).epoch(0),
        threat=manifest.threat,
        attacks=ATTACKS,
        seed=0,
    )
    after = manifest.after
    assert (after.samples, after.clean_accuracy) == (60, again.clean_accuracy)
    assert after.robust_accuracy["pgd-3x1"] == again.robust_accuracy["pgd-3x1"]
    assert "transfer-3-from-source" in after.robust_accuracy  # an adversary who has the float network
    assert manifest.before.robust_accuracy.keys() == {"pgd-3x1"}
    exact = hp.export(folder, tmp_path / "b", "dense", data=digits, worth=worth)
    assert exact.after.robust_accuracy == exact.before.robust_accuracy == manifest.before.robust_accuracy
    with pytest.raises(SpecError, match="accuracies need images"):
        hp.export(folder, tmp_path / "c", worth=worth)
    assert not (tmp_path / "c").exists()


def test_without_attacks_there_is_no_robust_accuracy(folder, tmp_path, digits):
    worth = hp.Worth(attacks=[], samples=20)
    manifest = hp.export(folder, tmp_path / "a", {"kind": "packed", "values": "int8"}, data=digits, worth=worth)
    assert manifest.before.robust_accuracy == manifest.after.robust_accuracy == {}


class Lossy(DenseFormat):
    """Says that it rounds nothing, and does."""

    kind: Literal["lossy"] = "lossy"

    def write(self, source, path):
        rounded = {n: v.half().float() if v.is_floating_point() else v for n, v in source.checkpoint.values.items()}
        write_dense(path, source.checkpoint.meta, rounded)


class Broken(Format):
    """Writes half of a file."""

    kind: Literal["broken"] = "broken"
    suffix = ".x"

    def write(self, source, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")


def test_what_gives_other_logits_does_not_replace_what_was_there(folder, tmp_path):
    out = tmp_path / "net.hpk"
    hp.export(folder, out)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("net.hpk*")}
    with pytest.raises(CheckpointError, match=r"'lossy' gives logits that differ by .* from those of its source"):
        hp.export(folder, out, Lossy())
    with pytest.raises(TrainingError, match=r"cannot write .*net\.hpk: No space left"):
        hp.export(folder, out, Broken())
    assert {path.name: path.read_bytes() for path in tmp_path.glob("net.hpk*")} == before
    assert not [*tmp_path.glob(".*.tmp")]


def test_folders_of_others_are_not_replaced(folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("more")
    for form, out in (("packed", "mine"), ("hub", "mine"), ("hub", "file"), ("hub", "net")):
        with pytest.raises(SpecError, match="choose another"):
            hp.export(folder, tmp_path / out, form)
    hp.export(folder, tmp_path / "hub", "hub")
    hp.export(folder, tmp_path / "hub", "hub")  # its own
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"


def test_nothing_but_an_export_is_replaced(folder, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "app.json").write_text('{"name": "app"}')  # where the manifest of `app` would lie
    (tmp_path / "web").mkdir()
    (tmp_path / "web/manifest.json").write_text('{"name": "app"}')
    (tmp_path / "card").mkdir()
    write_json(tmp_path / "card" / MANIFEST, Manifest(
        format={"kind": "hub"}, sha256={"network.hpk": ""}, bytes=1, dense_bytes=1, source="", sparsity=0, kept=1,
        total=1, layers={}, probe=0, difference=0, logit=0, rounds=False, versions={},
    ).plain())  # fmt: skip
    (tmp_path / "card/.git").mkdir()
    (tmp_path / "card/.git/HEAD").write_text("main")
    mine = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for form, out in (
        ("packed", "thesis.tex"), ("packed", "app"), ("hub", "web"), ("hub", "card"),
        ("dense", "net/model.safetensors"), ("packed", "net/checkpoint"),
    ):  # fmt: skip
        with pytest.raises(SpecError, match="choose another"):
            hp.export(folder, tmp_path / out, form)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == mine


def test_what_is_exported_is_not_replaced(folder, tmp_path):
    out = tmp_path / "net.hpk"
    hp.export(folder, out)
    with pytest.raises(SpecError, match=r"net\.hpk is what is exported, and would be replaced; choose another path"):
        hp.export(out, out, {"kind": "packed", "values": "int8"})
    out.unlink()
    hp.export(folder, out)  # its manifest says whose it was


def test_a_probe_of_an_earlier_file_does_not_stay(tmp_path):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    save(tmp_path / "own", model)
    hp.export(tmp_path / "own", tmp_path / "a.hpk", model=model, shape=(1, 8, 8))
    hp.export(tmp_path / "own", tmp_path / "a.hpk")
    assert not beside(tmp_path / "a.hpk", PROBE).exists()


def test_a_pipe_is_not_waited_for(folder, tmp_path):
    out = tmp_path / "net.hpk"
    hp.export(folder, out)
    out.unlink()
    os.mkfifo(out)
    with pytest.raises(CheckpointError, match=r"net\.hpk is no file; export it again"):
        read_manifest(out)


def test_the_other_process_imports_nothing_from_the_working_directory(folder, tmp_path, monkeypatch):
    (tmp_path / "safetensors.py").write_text("raise SystemExit('run')")
    monkeypatch.chdir(tmp_path)
    assert hp.export(folder, tmp_path / "net.hpk").probe


def test_a_manifest_of_another_file_is_not_believed(folder, tmp_path):
    out = tmp_path / "net.hpk"
    hp.export(folder, out)
    path = beside(out, MANIFEST)
    figures = json.loads(path.read_text())
    path.write_text(json.dumps({**figures, "sparsity": 0.99}))
    with pytest.raises(CheckpointError, match="altered"):
        read_manifest(out)
    path.write_text(json.dumps(figures))
    read_manifest(out)
    out.write_bytes(out.read_bytes() + b"x")
    with pytest.raises(CheckpointError, match=r"speaks of other content than .*net\.hpk has; export it again"):
        read_manifest(out)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"net\.hpk\.json"):
        read_manifest(out)


NONSENSE = [None, -1, 0, 2.5, "", "x" * 99, [], {}, {"kind": 1}, [1, 2], True, 10**30, {"a": [1, 2, 3]}]


def test_nonsense_with_a_digest_of_its_own_is_refused_or_harmless(folder, tmp_path):
    out = tmp_path / "net.hpk"
    hp.export(folder, out)
    path = beside(out, MANIFEST)
    figures = json.loads(path.read_text())
    refused = []
    for name in (*figures, "more"):
        for value in NONSENSE:
            path.write_text(json.dumps(with_digest({**figures, name: value})))
            try:
                found = read_manifest(out)
            except CheckpointError as error:
                refused.append(str(error))
            else:
                in_words(found)
    assert len(refused) > 200
    assert not any("\n" in line for line in refused)
    for text in ("", "{", "[]", "null", "9" * 5000, "[" * 5000, '{"sha256": NaN}'):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=r"net\.hpk\.json"):
            read_manifest(out)


def test_a_folder_that_links_elsewhere_is_refused(folder, tmp_path):
    hp.export(folder, tmp_path / "hub", "hub")
    (tmp_path / "secret").write_text("not for you")
    (tmp_path / "hub/README.md").unlink()
    (tmp_path / "hub/README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError):
        read_manifest(tmp_path / "hub")


def test_a_network_of_python_alone(tmp_path, digits):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    save(tmp_path / "own", model)
    assert hp.export(tmp_path / "own", tmp_path / "a.hpk").probe == 0  # nobody can make it elsewhere
    with pytest.raises(SpecError, match=r"does not say how large its images are; give `shape=\(C, H, W\)`"):
        hp.export(tmp_path / "own", tmp_path / "b.hpk", model=model)
    manifest = hp.export(tmp_path / "own", tmp_path / "b.hpk", model=model, shape=(1, 8, 8))
    assert (manifest.probe, manifest.difference) == (16, 0)
    assert hp.export(tmp_path / "own", tmp_path / "c.hpk", model=model, data=digits).probe == 16


def test_one_writer_at_a_time(folder):
    with own(folder / "export"):
        ran = subprocess.run(
            [sys.executable, "-m", "hydraprune", "export", str(folder), "--samples", "0"],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    assert "is being written by process" in ran.stderr


def test_a_killed_one_leaves_what_was_there(folder, tmp_path):
    out = tmp_path / "out/net.hpk"
    before = hp.export(folder, out)
    command = [sys.executable, "-m", "hydraprune", "export", str(folder), "--samples", "0", "--out", str(out)]
    process = subprocess.Popen([*command, "--option", "values=int8"])
    while not [*out.parent.glob(".net.hpk.*.tmp")]:
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert read_manifest(out) == before
    hp.export(folder, out)
    assert sorted(path.name for path in out.parent.iterdir() if path.name != ".lock") == [
        "net.hpk", "net.hpk.json", "net.hpk.probe.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_damage_is_one_error(folder, tmp_path, cut):
    for form in ("packed", "dense"):
        out = tmp_path / form
        hp.export(folder, out, form)
        out.write_bytes(out.read_bytes()[:cut])
        with pytest.raises(HydrapruneError, match=form):
            hp.load(out)


def test_arguments_that_make_no_sense(folder, tmp_path):
    for form, what in (("densee", "did you mean 'dense'"), ({"kind": "packed", "values": "int7"}, "values")):
        with pytest.raises(SpecError, match=what):
            hp.export(folder, tmp_path / "x", form)
    with pytest.raises(CheckpointError, match="holds no finished checkpoint"):
        hp.export(tmp_path / "nothing", tmp_path / "x")
    assert os.listdir(tmp_path) == ["net"]


def test_a_file_does_not_tell_where_it_was_made(folder, tmp_path):
    source = open_checkpoint(folder)
    paths = {
        "data": {"kind": "cifar10", "path": "/home/me/secret/cifar"},
        "extra": ["C:\\Users\\me\\more", "8/255", "a/b"],
    }
    net = source.meta.net.model_copy(update={"weights": "/home/me/secret/dense.pth"})
    save(tmp_path / "told", source.network(), source.meta.model_copy(update={"recipe": paths, "net": net}))
    for form in ("packed", "dense"):
        hp.export(tmp_path / "told", tmp_path / form, form)
        meta = hp.load(tmp_path / form)[1]
        assert meta.recipe == {"data": {"kind": "cifar10", "path": "cifar"}, "extra": ["more", "8/255", "a/b"]}
        assert (meta.net.weights, meta.net.kind) == ("dense.pth", "cnn_medium")


def test_a_dense_file_is_what_load_state_dict_takes(folder, tmp_path):
    hp.export(folder, tmp_path / "net.safetensors", "dense")
    checkpoint = open_checkpoint(folder)
    plain = checkpoint.meta.net.build(10, 1, 8)
    plain.load_state_dict(load_file(tmp_path / "net.safetensors"))
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(plain.eval()(x), hp.load(folder)[0].eval()(x))


@pytest.mark.parametrize("out", ["net/model.safetensors", "net/checkpoint", "theirs.pth", "links.hpk"])
def test_files_of_others_are_not_replaced(folder, tmp_path, out):
    torch.save({"years": torch.ones(1)}, tmp_path / "theirs.pth")
    (tmp_path / "links.hpk").symlink_to(tmp_path / "theirs.pth")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SpecError, match="is there already, and is no export; choose another path"):
        hp.export(folder, tmp_path / out, "dense")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    hp.load(folder)


def test_a_name_by_which_a_file_would_not_be_known(folder, tmp_path):
    for form, name, other in (("packed", "net.onnx", r"net\.hpk"), ("onnx", "net.hpk", r"net\.onnx")):
        with pytest.raises(SpecError, match=f"call it {other}"):
            hp.export(folder, tmp_path / name, form)


def test_without_pgd_both_are_judged_by_the_one_that_finds_images_elsewhere(folder, tmp_path, digits):
    worth = hp.Worth(attacks=["fgsm"], samples=10)
    manifest = hp.export(folder, tmp_path / "a", {"kind": "packed", "values": "int8"}, data=digits, worth=worth)
    assert manifest.before.robust_accuracy.keys() == {"fgsm", "pgd-50x10", "worst-case"}
    assert manifest.after.robust_accuracy.keys() - manifest.before.robust_accuracy.keys() == {
        "transfer-50x10-from-source"
    }
    exact = hp.export(folder, tmp_path / "b", "dense", data=digits, worth=worth)
    assert exact.before.robust_accuracy.keys() == exact.after.robust_accuracy.keys() == {"fgsm"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"shape": (3, 8, 8)}, r"the network does not take images \(16, 3, 8, 8\)"),
        ({"shape": (8, 8)}, r"give channels, height and width"),
        ({"shape": (1, 8, 0)}, r"image_shape is 0"),
        ({"data": [(torch.rand(1, 1, 8, 8), torch.zeros(1))]}, r"`data` is a list; give a data set"),
    ],
)
def test_images_that_the_network_does_not_take(tmp_path, settings, words):
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 10))
    save(tmp_path / "own", model)
    with pytest.raises(HydrapruneError, match=words):
        hp.export(tmp_path / "own", tmp_path / "a.hpk", model=model, **settings)
    assert not (tmp_path / "a.hpk").exists()


def test_files_that_are_no_checkpoints_say_what_to_do(tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "net.pth")
    (tmp_path / "net.onnx").write_bytes(b"\x08\x0a")
    for take in (hp.load, hp.export):
        with pytest.raises(CheckpointError, match=r"net\.pth is no checkpoint of hydraprune's.*`hydraprune import"):
            take(tmp_path / "net.pth")
        with pytest.raises(CheckpointError, match=r"net\.onnx is for runtimes"):
            take(tmp_path / "net.onnx")
    with pytest.raises(CheckpointError, match=r"net\.onnx is for runtimes"):
        hp.import_checkpoint(tmp_path / "net.onnx", tmp_path / "ours", "cnn_digits")
