"""Exports of which channels are gone."""

import pytest
import torch
from safetensors.torch import load_file

import hydraprune as hp
from hydraprune.core.errors import CheckpointError, SpecError
from hydraprune.core.tensors import load_tensors, save_tensors
from hydraprune.deploy.onnx_network import OnnxNetwork
from hydraprune.runs.checkpoint import save
from hydraprune.runs.meta import Meta


@pytest.fixture
def channels(tmp_path):
    """A residual network with batch norm, three quarters of whose coupled channels are gone."""
    torch.manual_seed(0)
    net = hp.Net(kind="wrn_10_1")
    model = net.build(10, 1, 8)
    model(torch.rand(64, 1, 8, 8))
    batch = hp.Batch(torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.long))
    probe = hp.Probe(torch.Generator(), batches=lambda: [batch])
    hp.prune(model, "magnitude", 0.75, "coupled", probe)
    hp.MaskView(model).freeze()
    save(tmp_path / "net", model, Meta(net=net, num_classes=10, in_channels=1, image_size=8, pruner="magnitude"))
    return tmp_path / "net"


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1)))


def test_layers_are_smaller_and_logits_are_equal(channels, tmp_path):
    manifest = hp.export(channels, tmp_path / "small.safetensors", "shrunk")
    source, meta = hp.load(channels)
    small, small_meta = hp.load(tmp_path / "small.safetensors")
    assert torch.allclose(logits(small), logits(source), atol=1e-5)
    assert manifest.smaller > 5
    assert (manifest.kept, manifest.total) == (meta.kept, meta.total)  # of the network that it is made from
    counted = sum(parameter.numel() for parameter in small.parameters())
    assert counted == sum(
        t.numel()
        for n, t in load_file(tmp_path / "small.safetensors").items()
        if "running" not in n and "num_b" not in n
    )
    assert counted < sum(parameter.numel() for parameter in source.parameters()) / 5
    assert small_meta.shrunk
    again = hp.export(tmp_path / "small.safetensors", tmp_path / "small.hpk")  # and packed
    assert torch.equal(logits(hp.load(tmp_path / "small.hpk")[0]), logits(small))
    assert again.bytes < manifest.bytes


def test_what_programs_run_is_shrunk_too(channels, tmp_path):
    manifest = hp.export(channels, tmp_path / "net.onnx", "onnx")
    assert manifest.smaller > 5
    assert torch.allclose(
        OnnxNetwork(tmp_path / "net.onnx")(torch.ones(2, 1, 8, 8)),
        hp.load(channels)[0].eval()(torch.ones(2, 1, 8, 8)),
        atol=1e-5,
    )


def test_where_no_channel_is_gone_it_says_what_can_serve(tmp_path):
    torch.manual_seed(0)
    dense = hp.Net(kind="cnn_digits").build(10, 1, 8)
    save(tmp_path / "dense", dense, Meta(net=hp.Net(kind="cnn_digits"), num_classes=10, in_channels=1, image_size=8))
    with pytest.raises(SpecError, match=r"no channel is removed .* `structure: coupled`, or export it as packed"):
        hp.export(tmp_path / "dense", tmp_path / "small", "shrunk")
    save(tmp_path / "own", dense)
    with pytest.raises(SpecError, match=r"made in Python .* use hp\.shrink"):
        hp.export(tmp_path / "own", tmp_path / "small", "shrunk", model=dense, shape=(1, 8, 8))
    assert not (tmp_path / "small").exists()


def test_sizes_that_cannot_be_are_one_error(channels, tmp_path):
    path = tmp_path / "small.safetensors"
    hp.export(channels, path, "shrunk")
    held, meta = load_tensors(path)
    for name, value in held.items():
        others = [value[..., None]]
        others += [torch.cat([value] * 9), *([value[:-1]] if len(value) > 1 else [])] if value.dim() else []
        for other in others:
            save_tensors(path, held | {name: other.contiguous()}, meta)
            with pytest.raises(CheckpointError):
                hp.load(path)
    save_tensors(path, held, meta)
    with pytest.raises(CheckpointError, match="layers were shrunk; load it without a model"):
        hp.load(path, hp.load(channels)[0])
