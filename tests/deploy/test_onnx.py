"""One ONNX file: what is in it, and what runs it."""

import copy
import sys

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import hydraprune as hp
from hydraprune.core.errors import EvaluationError, MissingError, SpecError
from hydraprune.deploy.base import Original
from hydraprune.deploy.onnx_network import OnnxNetwork
from hydraprune.deploy.opened import opened
from hydraprune.nets.normalize import Normalize
from hydraprune.runs.checkpoint import open_checkpoint, save
from misuse import refused


@pytest.fixture(scope="module")
def file(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    manifest = hp.export(trained, path, "onnx")
    assert manifest.probe > 0
    assert manifest.difference <= 1e-4 * manifest.logit
    return path


def test_it_gives_the_logits_of_its_source_however_many_images(file, source, test_pair):
    network, x = opened(file), test_pair[0]
    for some in (x, x[:1], x[:7].contiguous(memory_format=torch.channels_last)):
        with torch.no_grad():
            assert torch.allclose(network(some), source.network(some), atol=1e-5)


def test_it_holds_folded_layers_with_their_zeros_and_nothing_of_the_machine(file, source):
    proto = onnx.load(file)
    weights = [numpy_helper.to_array(tensor) for tensor in proto.graph.initializer if len(tensor.dims) > 1]
    masked = [value for value in source.checkpoint.values.values() if value.dim() > 1]
    assert sorted((w != 0).sum() for w in weights) == sorted(int((v != 0).sum()) for v in masked)
    assert {node.op_type for node in proto.graph.node} == {"Conv", "Relu", "Reshape", "Gemm"}
    assert proto.graph.input[0].name == "images"
    assert proto.graph.output[0].name == "logits"
    assert b"hydraprune" not in file.read_bytes()
    assert b"/torch/" not in file.read_bytes()


def test_normalisation_is_part_of_it(tmp_path):
    model = nn.Sequential(Normalize((0.2, 0.4, 0.6), (0.5, 0.25, 0.1)), nn.Flatten(), nn.Linear(48, 2))
    save(tmp_path / "net", model)
    hp.export(tmp_path / "net", tmp_path / "net.onnx", "onnx", model=model, shape=(3, 4, 4))
    x = torch.rand(2, 3, 4, 4)
    scaled = (x - torch.tensor([0.2, 0.4, 0.6]).view(3, 1, 1)) / torch.tensor([0.5, 0.25, 0.1]).view(3, 1, 1)
    expected = scaled.flatten(1) @ model[2].weight.T + model[2].bias
    assert torch.allclose(opened(tmp_path / "net.onnx")(x), expected, atol=1e-5)


def test_a_network_whose_path_depends_on_the_image_is_refused_in_one_line(tmp_path):
    class Branching(nn.Linear):
        def forward(self, x):
            x = x.flatten(1)
            return super().forward(x if x.sum() > 1 else -x)

    model = Branching(4, 2)
    save(tmp_path / "net", model)
    with pytest.raises(
        SpecError, match=r"^the network cannot be exported to ONNX \([^\n]+\); export it as packed"
    ) as said:
        hp.export(tmp_path / "net", tmp_path / "net.onnx", "onnx", model=model, shape=(1, 2, 2))
    assert "\n" not in str(said.value)
    assert not (tmp_path / "net.onnx").exists()


def test_it_is_judged_as_any_network_is_but_has_no_gradients(file, source, test_pair):
    network, threat = opened(file), source.checkpoint.meta.threat
    some = tuple(part[:100] for part in test_pair)
    attack = {"kind": "transfer", "origin": "dense", "steps": 5}
    runs = [
        hp.evaluate(judged, some, threat=threat, attacks=attack, networks={"dense": source.network}, seed=0)
        for judged in (network, source.network)
    ]
    assert runs[0].clean_accuracy == runs[1].clean_accuracy > 0.9
    assert torch.equal(runs[0].worst_case, runs[1].worst_case)
    with pytest.raises(EvaluationError, match="ONNX Runtime gives no gradients; search on the network's twin"):
        hp.evaluate(network, some, threat=threat, attacks="pgd", seed=0)


def test_threads_are_as_many_as_asked_for(file, test_pair):
    network = OnnxNetwork(file, threads=1)
    assert network.shape == (1, 8, 8)
    assert network.session.get_session_options().intra_op_num_threads == 1
    assert copy.deepcopy(network).session is network.session
    with refused("threads is 0; give a whole number of at least 1"):
        OnnxNetwork(file, threads=0)


def test_without_the_package_it_is_said_how_to_get_it(file, source, monkeypatch, trained, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for call in (lambda: opened(file), lambda: hp.export(trained, tmp_path / "new.onnx", "onnx")):
        with pytest.raises(
            MissingError, match=r"needs the package onnxruntime; install it by `pip install 'hydraprune\[onnx\]'`"
        ):
            call()
    assert not (tmp_path / "new.onnx").exists()


def test_what_was_measured_of_it_is_what_its_source_has(trained, digits, tmp_path):
    worth = hp.Worth(attacks=[{"kind": "pgd", "steps": 3, "restarts": 2}], bounds=["ibp"], samples=30)
    manifest = hp.export(trained, tmp_path / "net.onnx", "onnx", data=digits, worth=worth)
    before, after = manifest.before, manifest.after
    assert before.clean_accuracy == after.clean_accuracy
    assert set(before.robust_accuracy) == {"pgd-3x2"}
    assert set(after.robust_accuracy) == {"transfer-3x2-from-twin"}
    assert before.verified["ibp"].verified_accuracy == after.verified["ibp"].verified_accuracy
    assert after.verified["ibp"].mean_margin == pytest.approx(before.verified["ibp"].mean_margin, rel=1e-3)


def test_bounds_of_a_ball_that_is_no_box_are_refused_before_anything_is_written(trained, digits, tmp_path):
    worth = hp.Worth(threat=hp.ThreatModel(norm="l2", eps=0.5), bounds=["ibp"])
    with refused("bounds hold for boxes, not for the norm 'l2'"):
        hp.export(trained, tmp_path / "net.onnx", "onnx", data=digits, worth=worth)
    assert not (tmp_path / "net.onnx").exists()


def test_one_that_takes_a_single_image_is_run_for_each(source, tmp_path, test_pair):
    from hydraprune.deploy.to_onnx import as_onnx

    onnx.save(as_onnx(source, batch=1), tmp_path / "one.onnx")
    x = test_pair[0][:5]
    with torch.no_grad():
        assert torch.allclose(opened(tmp_path / "one.onnx")(x), source.network(x), atol=1e-5)


def test_half_precision_is_written_as_what_it_is_judged_as(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).bfloat16()
    save(tmp_path / "net", model)
    original = Original(open_checkpoint(tmp_path / "net"), model, (1, 4, 4))
    from hydraprune.deploy.onnx_format import OnnxFormat

    OnnxFormat().write(original, tmp_path / "net.onnx")
    x = torch.rand(3, 1, 4, 4)
    assert torch.allclose(opened(tmp_path / "net.onnx")(x), model.float()(x), atol=1e-5)


class Branching(torch.nn.Module):
    """Goes on by what it sees, so that no graph says what it computes."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 10)

    def forward(self, x):
        y = self.layer(x.flatten(1))
        return y if y.mean() > 0 else -y


def test_a_network_that_cannot_be_traced_is_refused_in_one_line(tmp_path, capfd):
    save(tmp_path / "own", Branching())
    with pytest.raises(SpecError, match="the network cannot be exported to ONNX"):
        hp.export(tmp_path / "own", tmp_path / "a.onnx", "onnx", model=Branching(), shape=(1, 8, 8))
    assert capfd.readouterr().err == ""
    assert not list(tmp_path.glob("*.onnx*"))
