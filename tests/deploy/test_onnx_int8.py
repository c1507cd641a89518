"""Integers of 8 bits: what is written, what it computes, and whether attacks on its twin find what breaks it."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import hydraprune as hp
from hydraprune.deploy.onnx_twin import OnnxTwin
from hydraprune.deploy.opened import opened
from misuse import refused


@pytest.fixture(scope="module")
def shipped(trained, digits, tmp_path_factory):
    """The file and what was measured of it."""
    path = tmp_path_factory.mktemp("int8") / "net.onnx"
    worth = hp.Worth(attacks=[{"kind": "pgd", "steps": 5, "restarts": 2}], samples=200)
    form = {"kind": "onnx-int8", "calibration": 100}
    return path, hp.export(trained, path, form, data=digits, worth=worth)


def integers(path):
    graph = onnx.load(path).graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def test_weights_are_small_integers_and_zeros_stay(shipped, source):
    weights = [value for value in integers(shipped[0]).values() if value.dtype == np.int8 and value.ndim > 1]
    masked = [value for value in source.checkpoint.values.values() if value.dim() > 1]
    assert len(weights) == len(masked) == 5
    for weight in weights:
        (mask,) = (value != 0 for value in masked if value.shape == weight.shape)
        assert not weight[~mask.numpy()].any()
        assert abs(weight).max(axis=tuple(range(1, weight.ndim))).max() == 64
        # The sum of two products with an unsigned byte, as processors without VNNI take it.
        assert 2 * 255 * int(abs(weight).max()) < 2**15


def test_each_output_has_its_scale(shipped, source):
    found = integers(shipped[0])
    for name, weight in found.items():
        if weight.dtype == np.int8 and weight.ndim > 1:
            scale = found[name.replace("_quantized", "_scale")]
            assert scale.shape == weight.shape[:1]
    linear = source.checkpoint.values["13.weight"]
    steps = linear.abs().amax(1) / 64
    assert np.allclose(found["13.weight_scale"], steps.numpy(), rtol=1e-3)


def test_logits_are_not_rounded(shipped, test_pair):
    assert len(opened(shipped[0])(test_pair[0])[:, 0].unique()) > 256


def test_the_twin_computes_what_the_runtime_does(shipped, source, test_pair):
    x = test_pair[0]
    with torch.no_grad():
        runtime, twin, dense = (net(x) for net in (opened(shipped[0]), OnnxTwin(shipped[0]), source.network))
    assert (runtime.argmax(1) == twin.argmax(1)).float().mean() > 0.995
    lost = (runtime - dense).abs()
    assert (runtime - twin).abs().mean() < lost.mean() / 10
    assert (runtime - twin).abs().max() < lost.max() / 2


def test_attacks_on_the_twin_are_no_weaker_than_those_found_on_the_source(shipped, source, test_pair):
    """An adversary who knows of the rounding: with the rounding's own gradient of zero it would find nothing."""
    runtime, twin = opened(shipped[0]), OnnxTwin(shipped[0])
    x, y = (part[:300] for part in test_pair)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(twin(leaf).logsumexp(1).sum(), leaf)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
    found = hp.evaluate(
        runtime,
        (x, y),
        threat={"norm": "linf", "eps": 0.1},  # beyond that of its training, which few images give way to
        attacks=[{"kind": "transfer", "origin": name, "steps": 10, "restarts": 2} for name in ("source", "twin")],
        networks={"source": source.network, "twin": twin},
        seed=0,
    )
    robust = found.robust_accuracy
    assert robust["transfer-10x2-from-twin"] < found.clean_accuracy - 0.1
    assert robust["transfer-10x2-from-twin"] <= robust["transfer-10x2-from-source"] + 0.01


def test_what_is_measured_is_the_worst_over_source_and_twin(shipped):
    before, after = shipped[1].before, shipped[1].after
    assert set(before.robust_accuracy) == {"pgd-5x2"}
    names = {"transfer-5x2-from-source", "transfer-5x2-from-twin"}
    assert set(after.robust_accuracy) == {*names, "worst-case"}
    assert after.robust_accuracy["worst-case"] <= min(after.robust_accuracy[name] for name in names)
    assert abs(after.robust_accuracy["worst-case"] - before.robust_accuracy["pgd-5x2"]) < 0.05
    assert shipped[1].difference > 0
    assert shipped[1].smaller > 2


def test_ranges_need_images(trained, tmp_path):
    with refused("format 'onnx-int8' measures ranges on training images; give `data=`"):
        hp.export(trained, tmp_path / "net.onnx", "onnx-int8")
