"""A checkpoint in one packed file."""

import sys

import pytest
import torch

import hydraprune as hp
from hydraprune.core.errors import CheckpointError, MissingError, SpecError
from hydraprune.core.network import device_of
from hydraprune.runs.checkpoint import open_checkpoint, save
from hydraprune.runs.files import MODEL


def logits(model):
    return model.eval()(torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1)))


def test_it_is_loaded_as_the_folder_is(folder, tmp_path):
    source = open_checkpoint(folder)
    hp.export(folder, tmp_path / "net.hpk")
    model, meta = hp.load(tmp_path / "net.hpk")
    assert torch.equal(logits(model), logits(source.network()))
    masks = hp.MaskView(model).masks()
    assert masks.keys() == source.masks.keys()
    assert all(torch.equal(mask, source.masks[name]) for name, mask in masks.items())
    assert (meta.kept, meta.total, meta.pruner) == (source.meta.kept, source.meta.total, "magnitude")
    assert device_of(model).type == "cpu"
    dense = (folder / MODEL).stat().st_size
    assert (tmp_path / "net.hpk").stat().st_size < dense / 4


@pytest.mark.parametrize(("values", "near"), [("float16", 1e-2), ("bfloat16", 5e-2), ("int8", 5e-2)])
def test_rounded_weights_are_those_of_another_network(folder, tmp_path, values, near):
    source = open_checkpoint(folder)
    hp.export(folder, tmp_path / "net.hpk", {"kind": "packed", "values": values})
    packed = open_checkpoint(tmp_path / "net.hpk")
    assert packed.digest != source.digest  # so that no figure is taken over
    assert torch.allclose(logits(packed.network()), logits(source.network()), atol=near)


def test_a_folder_and_a_file_are_told_apart(folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        hp.load(folder / MODEL)
    with pytest.raises(CheckpointError, match="holds no finished checkpoint"):
        hp.load(tmp_path / "nothing")


def test_what_a_packed_file_cannot_hold_is_refused(tmp_path):
    save(tmp_path / "half", torch.nn.Sequential(torch.nn.Linear(4, 3)).bfloat16())
    with pytest.raises(SpecError, match=r"'0\.\w+' is torch\.bfloat16; a packed file takes float32"):
        hp.export(tmp_path / "half", tmp_path / "half.hpk")
    assert not (tmp_path / "half.hpk").exists()


@pytest.mark.parametrize("form", ["packed", "hub"])
def test_a_missing_package_is_told_before_anything_is_read(form, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingError, match="zstandard"):
        hp.export(tmp_path / "nothing", tmp_path / "x", form)
