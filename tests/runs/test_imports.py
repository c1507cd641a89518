"""Checkpoints of others made into ours: the same logits, the same zeros, and what is refused."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import hydraprune as hp
from hydraprune.core.errors import CheckpointError, HydrapruneError, SpecError
from hydraprune.runs.checkpoint import open_checkpoint, save
from hydraprune.runs.meta import Meta
from hydraprune.runs.single import write_packed
from nets.test_golden import NETS, checkpoint, entries, images

DIGITS = {"num_classes": 10, "in_channels": 1, "image_size": 8}


@pytest.fixture
def net():
    return hp.Net(kind="cnn_digits").build(10, 1, 8)


@pytest.fixture
def file(tmp_path, net):
    path = tmp_path / "theirs.pth.tar"
    torch.save({"state_dict": net.state_dict()}, path)
    return path


def logits(model, x):
    with torch.no_grad():
        return model.eval()(x)


@pytest.mark.parametrize("arch", NETS)
def test_the_authors_checkpoints_give_their_logits_and_counts(arch, tmp_path):
    entry = entries()[arch]
    path, classes = tmp_path / "checkpoint.pth.tar", 1000 if arch == "ResNet50" else 10
    state = {f"module.{name}": tensor for name, tensor in checkpoint(entry).items()}
    torch.save({"epoch": 100, "arch": arch, "state_dict": state, "best_prec1": torch.tensor(50.0)}, path)
    found = hp.import_checkpoint(path, tmp_path / "ours", NETS[arch], keep=entry["k"], num_classes=classes)
    path.unlink()
    model, meta = hp.load(tmp_path / "ours")
    assert meta == found.meta
    assert (meta.pruner, meta.kept, meta.origin["layout"]) == ("hydra", entry["nonzero_weights"], "hydra")
    expected = torch.tensor(entry["logits_first10"])
    error = (logits(model, images(entry))[:, :10] - expected).abs().max()
    assert error < 1e-4 * expected.abs().max()


def test_the_dead_block_is_left_out_unless_it_is_asked_for(tmp_path):
    net = hp.Net(kind="wrn_10_1", options={"legacy_dead_block": True})
    theirs = net.build(10)
    path = tmp_path / "a.pt"
    torch.save({f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}, path)
    found = hp.import_checkpoint(path, tmp_path / "live", "wrn_10_1")
    assert "left out: 12 tensors of sub_block1, through which no image passes" in found.notes
    whole = hp.import_checkpoint(path, tmp_path / "whole", net)
    assert whole.meta.total > found.meta.total
    x = torch.rand(2, 3, 32, 32)
    for folder in ("live", "whole"):
        assert torch.equal(logits(hp.load(tmp_path / folder)[0], x), logits(theirs, x))


def test_zeros_are_masks_and_a_dense_network_has_none(file, net, tmp_path):
    dense = hp.import_checkpoint(file, tmp_path / "dense", "cnn_digits", **DIGITS)
    assert (dense.meta.pruner, dense.meta.kept) == (None, dense.meta.total)
    assert dense.notes == ["read as it is"]
    pruned = hp.MaskView(net)
    hp.prune(pruned, "random", 0.7)
    state = pruned.bake().state_dict()
    torch.save(state, file)
    found = hp.import_checkpoint(file, tmp_path / "pruned", "cnn_digits", layout="benchmark", **DIGITS)
    assert found.meta.kept == pruned.count().kept
    assert found.meta.layers == {name: (one.kept, one.total) for name, one in pruned.counts().items()}
    assert (found.meta.pruner, found.meta.origin["layout"]) == ("imported", "benchmark")
    assert "guessed: weights that are 0 are removed, in 5 layers" in found.notes
    masks = open_checkpoint(tmp_path / "pruned").masks
    assert all(torch.equal(mask, state[name] != 0) for name, mask in masks.items())
    assert found.meta.origin["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_constants_of_the_file_become_those_of_the_network(tmp_path):
    class Theirs(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net
            self.register_buffer("mu", torch.tensor([0.49, 0.48, 0.45]).view(1, 3, 1, 1))
            self.register_buffer("sigma", torch.tensor([0.25, 0.24, 0.26]).view(1, 3, 1, 1))

        def forward(self, x):
            return self.net((x - self.mu) / self.sigma)

    theirs = Theirs(hp.Net(kind="cnn_small").build(10))
    state = {name.removeprefix("net."): tensor for name, tensor in theirs.state_dict().items()}
    save_file(state, tmp_path / "a.safetensors")
    found = hp.import_checkpoint(tmp_path, tmp_path / "ours", "cnn_small")
    assert found.meta.origin["layout"] == "robustbench"
    assert any("normalises images as the file says" in note for note in found.notes)
    x = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(logits(hp.load(tmp_path / "ours")[0], x), logits(theirs, x))
    given = {"kind": "cnn_small", "normalize": "cifar10"}
    other = hp.import_checkpoint(tmp_path, tmp_path / "other", given)
    assert any(note.startswith("left out: the file's mean") for note in other.notes)
    assert other.meta.net.normalize == hp.Net(**given).normalize
    save_file(state | {"sigma": torch.full((3,), 64.0)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"less than or equal to 1.*it does not normalise pixels in \[0, 1\]"):
        hp.import_checkpoint(tmp_path, tmp_path / "third", "cnn_small")


def test_networks_of_libraries_go_by_their_names(tmp_path):
    import timm
    from torchvision import models

    x = torch.rand(2, 3, 64, 64)
    for layout, name, theirs in (
        ("torchvision", "squeezenet1_1", models.squeezenet1_1(num_classes=7)),
        ("timm", "mobilenetv3_small_050", timm.create_model("mobilenetv3_small_050", num_classes=7)),
    ):
        torch.save(theirs.state_dict(), tmp_path / "a.pth")
        sizes = {"num_classes": 7, "image_size": 64}
        found = hp.import_checkpoint(tmp_path / "a.pth", tmp_path / layout, name, layout=layout, **sizes)
        assert found.meta.net.kind == f"{layout}:{name}"
        assert torch.equal(logits(hp.load(tmp_path / layout)[0], x), logits(theirs, x))  # without trust_code


def test_another_network_is_told_with_those_that_fit(file, tmp_path):
    with pytest.raises(CheckpointError, match=r"was made for another network; .*image size; it fits cnn_digits"):
        hp.import_checkpoint(file, tmp_path / "ours", "cnn_small", **DIGITS)
    with pytest.raises(CheckpointError, match=r"of another shape: \S+ \(10, \d+\) for \(9, \d+\)"):
        hp.import_checkpoint(file, tmp_path / "ours", "cnn_digits", **DIGITS | {"num_classes": 9})
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "hydro"}, "there is no format 'hydro'; did you mean 'hydra'"),
        ({"keep": 0.0}, "k is 0.0; give the kept fraction"),
        ({"keep": float("nan")}, "k is nan; give the kept fraction"),
        ({"net": "cnn_digit"}, "unknown net 'cnn_digit'"),
        ({"net": {"kind": "cnn_digits", "weights": "a.pt"}}, "net has weights or an init of its own"),
        ({"net": 3}, "net is 3; give Net"),
        ({"source": "gone.pth"}, "gone.pth: no such file"),
        ({"layout": "torchvision", "net": "resnet5"}, "torchvision has no network 'resnet5'"),
    ],
)
def test_what_is_wrong_is_told_and_nothing_written(file, tmp_path, settings, message):
    given = {"source": file, "net": "cnn_digits"} | settings
    with pytest.raises(HydrapruneError, match=message):
        hp.import_checkpoint(folder=tmp_path / "ours", **given, **DIGITS)
    assert not (tmp_path / "ours").exists()


def test_a_share_without_scores_is_left_out_and_scores_need_one(file, net, tmp_path):
    found = hp.import_checkpoint(file, tmp_path / "ours", "cnn_digits", keep=0.1, **DIGITS)
    assert "left out: the share to keep, 0.1, as the file has no scores" in found.notes
    layers = [name.removesuffix(".weight") for name in hp.MaskView(net).modules]
    scored = {f"{layer}.popup_scores": torch.randn_like(net.get_parameter(f"{layer}.weight")) for layer in layers}
    torch.save({"state_dict": net.state_dict() | scored}, file)
    with pytest.raises(CheckpointError, match=r"say what share of each layer it keeps.*--keep 0\.1 .*or 1 for the"):
        hp.import_checkpoint(file, tmp_path / "scored", "cnn_digits", **DIGITS)


def test_a_folder_of_ours_is_neither_read_nor_written(file, tmp_path):
    hp.import_checkpoint(file, tmp_path / "ours", "cnn_digits", **DIGITS)
    with pytest.raises(SpecError, match="holds a checkpoint already"):
        hp.import_checkpoint(file, tmp_path / "ours", "cnn_digits", **DIGITS)
    with pytest.raises(SpecError, match="is a checkpoint of hydraprune's own"):
        hp.import_checkpoint(tmp_path / "ours", tmp_path / "again", "cnn_digits", **DIGITS)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_numbers_that_are_none_are_refused(file, net, tmp_path, value):
    state = net.state_dict()
    weight = next(iter(state))
    torch.save(state | {weight: torch.full_like(state[weight], value, dtype=torch.float64)}, file)
    with pytest.raises(CheckpointError, match=f"{weight!r} has values that float32 cannot hold"):
        hp.import_checkpoint(file, tmp_path / "ours", "cnn_digits", **DIGITS)


def test_no_file_of_theirs_is_replaced(net, tmp_path):
    (tmp_path / "theirs").mkdir()
    path = tmp_path / "theirs/model.safetensors"
    save_file(net.state_dict(), path)
    before = path.read_bytes()
    for source in (path, path.parent):
        with pytest.raises(SpecError, match=r"model\.safetensors is there already.*choose another folder"):
            hp.import_checkpoint(source, path.parent, "cnn_digits", **DIGITS)
    assert path.read_bytes() == before
    ours = tmp_path / "ours"
    hp.import_checkpoint(path, ours, "cnn_digits", **DIGITS)
    (ours / "checkpoint.json").unlink()  # as a killed one leaves it
    hp.import_checkpoint(path, ours, "cnn_digits", **DIGITS)


def test_a_folder_with_a_packed_file_and_a_fetched_checkpoint_are_ours(net, tmp_path, monkeypatch):
    meta = Meta(net=hp.Net(kind="cnn_digits"), **DIGITS)
    save(tmp_path / "net", net, meta)
    checkpoint = open_checkpoint(tmp_path / "net")
    (tmp_path / "card").mkdir()
    write_packed(tmp_path / "card/network.hpk", checkpoint.meta, checkpoint.values, checkpoint.masks, "float32")
    save_file({"images": torch.zeros(1)}, tmp_path / "card/probe.safetensors")
    monkeypatch.setattr("hydraprune.runs.imports.located", lambda name: tmp_path / name.removeprefix("someone/"))
    for name in ("card", "net"):
        found = hp.import_checkpoint(f"someone/{name}", tmp_path / f"of-{name}")
        assert found.notes == ["read as one of ours"]
        again = open_checkpoint(tmp_path / f"of-{name}")
        assert all(torch.equal(value, checkpoint.values[key]) for key, value in again.values.items())
