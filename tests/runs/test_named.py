"""Checkpoints by name: the zoo, and the hub with its library replaced."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import hydraprune as hp
from hydraprune.core.errors import CheckpointError, MissingError
from hydraprune.runs.checkpoint import open_checkpoint, save
from hydraprune.runs.manifest import read_manifest
from hydraprune.runs.meta import Meta
from hydraprune.runs.named import FETCHED, ZOO, about, located, zoo_names


@pytest.fixture
def checkpoint(tmp_path):
    net = hp.Net(kind="cnn_digits")
    meta = Meta(net=net, num_classes=10, in_channels=1, image_size=8)
    save(tmp_path / "checkpoint", net.build(10, 1, 8), meta)
    return tmp_path / "checkpoint"


@pytest.fixture
def hub(monkeypatch, tmp_path, checkpoint):
    """The hub: a folder of files for each repository; and what was asked of it."""
    asked = []

    def snapshot_download(repository, *, revision, allow_patterns, local_dir):
        asked.append((repository, revision))
        if not (tmp_path / "hub" / repository).is_dir():
            raise OSError(f"404 for\n{repository}")
        shutil.copytree(tmp_path / "hub" / repository, local_dir, dirs_exist_ok=True)
        assert allow_patterns == FETCHED
        return str(local_dir)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    monkeypatch.setenv("HYDRAPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoint, tmp_path / "hub" / "acme" / "net")
    return asked


@pytest.mark.parametrize("name", zoo_names())
def test_a_network_of_the_zoo_is_what_its_record_says(name):
    model, meta = hp.load(f"zoo:{name}")
    manifest = read_manifest(ZOO / f"{name}.hpk")
    record = manifest.after
    assert (manifest.kept, manifest.total, manifest.net) == (meta.kept, meta.total, meta.net.kind)
    assert (record.sparsity, record.pruner) == (pytest.approx(meta.sparsity), meta.pruner)
    assert f"{100 * record.clean_accuracy:.1f} %" in about(name)
    if manifest.data == "digits":
        data = hp.load_data("digits")
        found = hp.evaluate(model, data.test, threat=record.threat, attacks=["fgsm"], seed=0)
        assert found.clean_accuracy == pytest.approx(record.clean_accuracy, abs=0.006)
        assert found.robust_accuracy["fgsm"] >= record.robust_accuracy["pgd-50x10"] - 0.01


def test_the_zoo_has_a_network_and_no_other_file():
    assert "digits-cnn_digits-hydra-95" in zoo_names()
    files = {file.name for file in ZOO.iterdir()}
    assert files == {f"{name}.{kind}" for name in zoo_names() for kind in ("hpk", "hpk.json", "hpk.probe.safetensors")}
    with pytest.raises(CheckpointError, match=r"no network 'digits-cnn_digits-hydra-9'; did you mean 'digits-cnn"):
        hp.load("zoo:digits-cnn_digits-hydra-9")
    with pytest.raises(CheckpointError, match="the zoo has no network"):
        hp.load("zoo:../../../etc/passwd")


@pytest.mark.parametrize("name", ["acme/net", "hf:acme/net", "hf:acme/net@v1.0"])
def test_a_checkpoint_on_the_hub_is_fetched_and_checked(hub, checkpoint, name):
    model, meta = hp.load(name)
    assert hub == [("acme/net", "v1.0" if "@" in name else None)]
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(model.eval()(x), hp.load(checkpoint)[0].eval()(x))
    assert meta == open_checkpoint(checkpoint).meta
    weights = Path("hub/acme/net/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(CheckpointError, match="is corrupt"):
        hp.load(name)


def test_a_path_that_exists_wins_and_its_folder_too(hub, checkpoint):
    shutil.copytree(checkpoint, "acme/net")
    hp.load("acme/net")
    with pytest.raises(CheckpointError, match=r"acme/nte holds no finished checkpoint"):
        hp.load("acme/nte")  # a slip of the pen, and no name on the hub
    with pytest.raises(CheckpointError, match="holds no finished checkpoint"):
        hp.load(Path("other/net"))
    assert hub == []
    hp.load("hf:acme/net")
    assert hub == [("acme/net", None)]


@pytest.mark.parametrize("name", ["a/b/c", "acme", "./acme/net2", "hf:acme", "hf:../net", "acme/net@../x", "/acme/net"])
def test_other_words_are_paths(hub, name):
    assert located(name) == name
    assert hub == []


def test_packed_files_on_the_hub(hub, checkpoint):
    Path("hub/acme/packed").mkdir()
    hp.export(checkpoint, "hub/acme/packed/one.hpk")
    assert hp.load("acme/packed")[1].net.kind == "cnn_digits"
    shutil.copy("hub/acme/packed/one.hpk", "hub/acme/packed/two.hpk")
    with pytest.raises(CheckpointError, match=r"holds several networks \(one\.hpk, two\.hpk\), in .*load one of"):
        hp.load("acme/packed")


def test_what_cannot_be_fetched_is_one_line(hub, monkeypatch):
    with pytest.raises(CheckpointError, match=r"cannot fetch acme/gone .*OSError: 404 for acme/gone\); correct"):
        hp.load("acme/gone")
    Path("hub/acme/empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no finished checkpoint"):
        hp.load("acme/empty")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingError, match=r"the hub \(acme/net\) needs the package huggingface_hub; .*\[hub\]"):
        hp.load("acme/net")
