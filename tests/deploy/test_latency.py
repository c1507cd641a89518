"""Times of artifacts: what is timed, what is said of it, and what is refused."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import hydraprune as hp
from hydraprune.core.errors import CheckpointError, MissingError, SpecError
from hydraprune.core.files import read_json, write_json
from hydraprune.deploy import probe, runtimes
from hydraprune.deploy.opened import opened
from hydraprune.deploy.runtimes import RUNTIMES, Runtime
from hydraprune.nets import Net
from hydraprune.runs.checkpoint import save
from hydraprune.runs.latency import read_latency
from hydraprune.runs.manifest import read_manifest
from hydraprune.runs.meta import Meta

QUICK = {"batch": [1, 3], "threads": [1], "repeats": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("latency") / "net"
    net = Net(kind="cnn_medium")
    model = net.build(10, 1, 8)
    hp.prune(model, "magnitude", hp.ERK(sparsity=0.9))
    hp.MaskView(model).freeze()
    save(place, model, Meta(net=net, num_classes=10, in_channels=1, image_size=8, pruner="magnitude"))
    data = hp.load_data("digits", samples=100)
    worth = hp.Worth(threat=hp.ThreatModel(eps=0.1), attacks=["fgsm"], samples=20)
    with pytest.MonkeyPatch.context() as patch:  # that another process reads them is tested elsewhere
        patch.setattr(probe, "elsewhere", lambda made, images, aside, trusted: probe.answers(opened(made), images))
        for form in ("packed", {"kind": "packed", "values": "int8"}):
            hp.export(place, format=form, data=data, worth=worth)
        hp.export(place, format="onnx")
    return place


def test_what_is_said_of_every_artifact(folder, tmp_path):
    export = folder / "export"
    names = ["packed-float32.hpk", "packed-int8.hpk", "onnx.onnx"]
    told = []
    found = hp.latency(
        folder, *(export / name for name in names), **QUICK, out=tmp_path / "l.json", progress=lambda *a: told.append(a)
    )
    assert [Path(tmp_path, a.artifact).resolve() for a in found.artifacts] == [folder, *(export / n for n in names)]
    assert [a.format for a in found.artifacts] == ["checkpoint", "packed-float32", "packed-int8", "onnx"]
    assert found.shape == (1, 8, 8)
    for artifact, name in zip(found.artifacts[1:], names, strict=True):
        manifest = read_manifest(export / name)
        assert (artifact.bytes, artifact.smaller) == ((export / name).stat().st_size, manifest.smaller)
        assert artifact.sparsity == manifest.sparsity
    after = read_manifest(export / "packed-int8.hpk").after
    assert (found.artifacts[2].clean, found.artifacts[2].robust) == (
        after.clean_accuracy, min(after.robust_accuracy.values())
    )  # fmt: skip
    assert found.artifacts[0].clean == read_manifest(export / "packed-int8.hpk").before.clean_accuracy
    assert found.artifacts[3].robust is None
    runs = {a.format: {t.runtime for t in a.times} for a in found.artifacts}
    assert runs["packed-int8"] == {"torch"}
    assert runs["onnx"] == {"onnxruntime", "openvino"}
    for artifact in found.artifacts:
        assert sorted((t.batch, t.threads) for t in artifact.times if t.runtime == artifact.times[0].runtime) == [
            (1, 1), (3, 1)
        ]  # fmt: skip
        assert all(t.quartiles[0] <= t.ms <= t.quartiles[1] and t.difference < 1e-5 for t in artifact.times)
    base = {t.batch: t.ms for t in found.artifacts[0].times}
    assert found.artifacts[0].times[0].faster == 1
    assert all(t.faster == pytest.approx(base[t.batch] / t.ms) for a in found.artifacts for t in a.times)
    assert read_latency(tmp_path / "l.json") == found
    assert [(done, total) for what, done, total in told if what.startswith("repeat")] == [(1, 2), (2, 2)]
    assert "openvino" in found.versions


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "openvino"])
@pytest.mark.parametrize("threads", [1, 2])
def test_runtimes_compute_what_the_network_does(folder, name, threads):
    x = torch.rand(5, 1, 8, 8)
    path = folder if name == "torch" else folder / "export" / "onnx.onnx"
    with torch.no_grad():
        expected = opened(folder)(x)
    call = RUNTIMES[name].opens(path, threads, False)(x.numpy())
    assert np.allclose(call(), expected.numpy(), atol=1e-5)
    assert np.allclose(call(), expected.numpy(), atol=1e-5)
    if name == "torch":
        assert torch.get_num_threads() == threads


def test_times_are_medians_of_what_a_call_takes(folder, tmp_path, monkeypatch):
    """With a runtime that takes 3 ms for each image."""

    def opens(path, threads, trust_code):
        def ready(images):
            def call():
                time.sleep(0.003 * len(images))
                return np.zeros((len(images), 2), np.float32)

            return call

        return ready

    monkeypatch.setitem(runtimes.RUNTIMES, "slow", Runtime("torch", False, opens))
    found = hp.latency(folder, batch=[1, 4], threads=[2, 1], runtimes=["slow"], repeats=3, out=tmp_path / "l.json")
    times = {(t.batch, t.threads): t for t in found.artifacts[0].times}
    assert times.keys() == {(1, 1), (4, 1), (1, 2), (4, 2)}
    assert all(3 * batch <= t.ms < 3 * batch + 30 for (batch, _), t in times.items())


def test_a_folder_with_nothing_but_a_packed_file(folder, tmp_path):
    hp.export(folder, tmp_path / "a.hpk")
    (tmp_path / "card").mkdir()
    size = (tmp_path / "a.hpk").rename(tmp_path / "card/network.hpk").stat().st_size
    found = hp.latency(tmp_path / "card", batch=[1], threads=[1], repeats=1)
    assert [(one.bytes, one.format) for one in found.artifacts] == [(size, "folder")]


def test_where_the_file_lies(folder):
    hp.latency(folder, **QUICK)
    assert read_latency(folder / "export" / "latency.json").artifacts[0].artifact == ".."
    hp.latency(folder, folder / "export" / "onnx.onnx", **QUICK, runtimes=["torch", "onnxruntime"])
    found = read_latency(folder / "export" / "latency.json")
    assert [a.artifact for a in found.artifacts] == ["..", "onnx.onnx"]
    assert found.baseline == ("..", "torch")


def test_threads_of_the_caller_are_what_they_were(folder, tmp_path):
    torch.set_num_threads(1)
    hp.latency(folder, batch=[1], threads=[2], repeats=1, out=tmp_path / "l.json")
    assert torch.get_num_threads() == 1


def test_the_baseline_may_be_another(folder, tmp_path):
    onnx = folder / "export" / "onnx.onnx"
    found = hp.latency(folder, onnx, **QUICK, runtimes=["torch", "openvino"], baseline=onnx, out=tmp_path / "l.json")
    assert found.baseline[1] == "openvino"
    assert all(t.faster == 1 for t in found.artifacts[1].times)
    with pytest.raises(SpecError, match="is none of the artifacts"):
        hp.latency(folder, **QUICK, baseline=tmp_path, out=tmp_path / "l.json")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch": [0]}, "batch is 0; give a whole number of at least 1"),
        ({"threads": [-1]}, "threads is -1"),
        ({"repeats": 0}, "repeats is 0"),
        ({"runtimes": ["onnxrt"]}, "unknown runtime 'onnxrt'; did you mean 'onnxruntime'?"),
        ({"runtimes": ["openvino"]}, "nothing can run .*: it is for torch and compiled; name one of them"),
    ],
)
def test_settings_that_cannot_be_used(folder, tmp_path, settings, words):
    with pytest.raises(SpecError, match=words):
        hp.latency(folder, **{**QUICK, **settings}, out=tmp_path / "l.json")
    assert not (tmp_path / "l.json").exists()


def test_nothing_and_what_is_damaged_is_refused(folder, tmp_path):
    with pytest.raises(SpecError, match="nothing to time"):
        hp.latency()
    with pytest.raises(SpecError, match="there is no"):
        hp.latency(tmp_path / "nothing")
    broken = tmp_path / "broken.hpk"
    broken.write_bytes((folder / "export" / "packed-int8.hpk").read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"broken\.hpk"):
        hp.latency(broken, **QUICK)
    graph = tmp_path / "broken.onnx"
    graph.write_bytes((folder / "export" / "onnx.onnx").read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"broken\.onnx"):
        hp.latency(graph, **QUICK)
    other = tmp_path / "packed-int8.hpk"
    other.write_bytes((folder / "export" / "packed-int8.hpk").read_bytes())
    (tmp_path / "packed-int8.hpk.json").write_text((folder / "export" / "packed-float32.hpk.json").read_text())
    with pytest.raises(CheckpointError, match="speaks of other content"):
        hp.latency(other, **QUICK)
    assert not (tmp_path / "latency.json").exists()


def test_the_size_of_images_must_be_known_and_the_same(folder, tmp_path):
    torch.manual_seed(0)
    net = Net(kind="cnn_medium")
    save(tmp_path / "other", net.build(10, 3, 8), Meta(net=net, num_classes=10, in_channels=3, image_size=8))
    with pytest.raises(SpecError, match=r"takes images of \(3, 8, 8\), and .* of \(1, 8, 8\)"):
        hp.latency(folder, tmp_path / "other", **QUICK, out=tmp_path / "l.json")
    save(tmp_path / "unsaid", net.build(10, 3, 32), Meta(net=net, num_classes=10))
    with pytest.raises(SpecError, match="does not say how large its images are"):
        hp.latency(tmp_path / "unsaid", **QUICK)
    found = hp.latency(tmp_path / "unsaid", **QUICK, shape=(3, 32, 32))
    assert (found.shape, found.artifacts[0].sparsity, found.artifacts[0].robust) == ((3, 32, 32), 0.0, None)


def test_a_package_that_is_missing_is_told_once(folder, tmp_path, monkeypatch):
    def missing(path, threads, trust_code):
        raise MissingError("runtime 'openvino' needs the package openvino; install it")

    monkeypatch.setitem(runtimes.RUNTIMES, "openvino", Runtime("openvino", True, missing))
    onnx, copy = folder / "export" / "onnx.onnx", tmp_path / "copy.onnx"
    copy.write_bytes(onnx.read_bytes())
    found = hp.latency(onnx, copy, **QUICK, out=tmp_path / "l.json")
    assert found.left_out == ["runtime 'openvino' needs the package openvino; install it"]
    with pytest.raises(MissingError, match="needs the package openvino"):
        hp.latency(onnx, **QUICK, runtimes=["openvino"], out=tmp_path / "l.json")
    monkeypatch.setitem(runtimes.RUNTIMES, "onnxruntime", Runtime("onnxruntime", True, missing))
    with pytest.raises(MissingError, match="nothing can run"):
        hp.latency(onnx, **QUICK, out=tmp_path / "l.json")


def test_logits_that_are_not_finite_are_no_speed(tmp_path):
    net = Net(kind="cnn_medium")
    model = net.build(10, 1, 8)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    save(tmp_path / "net", model, Meta(net=net, num_classes=10, in_channels=1, image_size=8))
    with pytest.raises(CheckpointError, match="not finite in torch"):
        hp.latency(tmp_path / "net", **QUICK)


def test_a_file_of_times_that_is_damaged(folder, tmp_path):
    file = tmp_path / "l.json"
    hp.latency(folder, **QUICK, out=file)
    entries = read_json(file)
    entries["artifacts"][0]["times"][0]["ms"] = -1.0
    write_json(file, entries)
    with pytest.raises(CheckpointError, match=r"artifacts\.0\.times\.0\.ms"):
        read_latency(file)
    file.write_text(json.dumps(entries))
    with pytest.raises(CheckpointError, match="no digest"):
        read_latency(file)


def test_torch_compile_says_why_it_fails(folder, monkeypatch):
    def refuse(*arguments, **settings):
        def call(x):
            raise RuntimeError("no compiler here\nmore")

        return call

    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.raises(
        CheckpointError, match=r"torch\.compile fails on net \(no compiler here\); leave `compiled` out"
    ):
        RUNTIMES["compiled"].opens(folder, 1, False)(np.zeros((1, 1, 8, 8), np.float32))
