"""Folders for the Hub."""

import dataclasses

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard

import hydraprune as hp
from hydraprune.core.errors import TrainingError
from hydraprune.runs.checkpoint import save
from hydraprune.runs.meta import Meta


def test_the_card_says_what_was_measured(folder, tmp_path, digits):
    worth = hp.Worth(attacks=[{"kind": "pgd", "steps": 2, "restarts": 1}], samples=40)
    manifest = hp.export(folder, tmp_path / "hub", "hub", data=digits, worth=worth)
    card = ModelCard.load(tmp_path / "hub/README.md")
    robust = manifest.after.robust_accuracy
    figures = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert figures == {
        "clean accuracy, 40 images": round(100 * manifest.after.clean_accuracy, 2),
        "robust accuracy under pgd-2x1, ℓ∞, radius 0.06 (15.3/255), 40 images": round(100 * robust["pgd-2x1"], 2),
    }
    assert card.data.library_name == "hydraprune"
    assert "| threat model | ℓ∞, radius 0.06 (15.3/255) |" in card.text
    assert f"{manifest.kept:,} of {manifest.total:,} prunable weights" in " ".join(card.text.split())
    model, meta = hp.load(tmp_path / "hub")
    assert (hp.MaskView(model).count().kept, meta.kept) == (manifest.kept, manifest.kept)


def test_the_card_says_under_which_radius_and_on_which_data(digits, tmp_path):
    torch.manual_seed(0)
    net, recipe = hp.Net(kind="cnn_digits"), {"data": {"kind": "digits"}}
    meta = Meta(net=net, num_classes=10, in_channels=1, image_size=8, recipe=recipe, data=digits.digests())
    save(tmp_path / "net", net.build(10, 1, 8), meta.model_copy(update={"threat": hp.ThreatModel(eps=0.3)}))
    worth = hp.Worth(attacks=["fgsm"], samples=20, threat=hp.ThreatModel(eps=0.01))
    others = dataclasses.replace(digits, test=digits.train)
    for data, kind in ((digits, "digits"), (others, "other data")):
        hp.export(tmp_path / "net", tmp_path / "hub", "hub", data=data, worth=worth)
        card = ModelCard.load(tmp_path / "hub/README.md")
        assert {result.dataset_type for result in card.data.eval_results} == {kind}
        assert "| threat model | ℓ∞, radius 0.3 (76.5/255) |" in card.text
        (line,) = [line for line in card.text.splitlines() if "robust accuracy under" in line]
        assert "fgsm, ℓ∞, radius 0.01 (2.55/255) |" in line
        assert line.endswith("| 20 |" if kind == "digits" else "| 20 of other data |")


def test_nothing_measured_is_said(folder, tmp_path):
    hp.export(folder, tmp_path / "hub", "hub")
    assert "Nothing was measured of this file." in (tmp_path / "hub/README.md").read_text()


def test_it_is_pushed_on_request_only(folder, tmp_path, monkeypatch):
    calls = []

    class Api:
        def create_repo(self, name, exist_ok):
            calls.append(("create", name, exist_ok))

        def upload_folder(self, repo_id, folder_path):
            calls.append(("upload", repo_id, sorted(path.name for path in folder_path.iterdir())))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    hp.export(folder, tmp_path / "hub", "hub")
    assert calls == []
    hp.export(folder, tmp_path / "hub", {"kind": "hub", "repo": "group/net"})
    names = ["README.md", "manifest.json", "network.hpk", "probe.safetensors"]
    assert calls == [("create", "group/net", True), ("upload", "group/net", names)]
    assert 'hp.load("group/net")' in (tmp_path / "hub/README.md").read_text()


def test_without_the_network_it_is_whole_and_says_so(folder, tmp_path, monkeypatch):
    class Api:
        def create_repo(self, name, exist_ok):
            raise OSError("no route to host\nand more")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    with pytest.raises(TrainingError, match=r"is whole, but was not pushed to group/net: no route to host; log in"):
        hp.export(folder, tmp_path / "hub", {"kind": "hub", "repo": "group/net"})
    hp.load(tmp_path / "hub")
