"""The authors' checkpoints, tensor by tensor: names, masks and logits of their published code."""

import json
import math
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hydraprune.nets.foreign import hydra_masks, load_weights
from hydraprune.nets.spec import Net

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "hydra_reference.json"
NETS = {
    "cifar_model": Net(kind="cnn_small"),
    "cifar_model_large": Net(kind="cnn_large"),
    "vgg16_bn": Net(kind="vgg16_bn"),
    "wrn_28_4": Net(kind="wrn_28_4", options={"legacy_dead_block": True}),
    "resnet18": Net(kind="resnet18"),
    "ResNet50": Net(kind="timm:resnet50"),
}


@cache
def entries():
    return {entry["arch"]: entry for entry in json.loads(GOLDEN.read_text())["checkpoints"]}


def wave(count, phase):
    i = torch.arange(count, dtype=torch.float64)
    return torch.sin(0.7 * i + 0.0003 * i**2 + phase)


def tensor(position, name, shape, phase):
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    a = wave(math.prod(shape), phase + position).view(shape)
    if name.endswith("running_var"):
        return (1 + 0.5 * a**2).float()
    if len(shape) > 1:
        return (a * math.sqrt(2 / math.prod(shape[1:]))).float()
    return (1 + 0.1 * a if name.endswith("weight") else 0.1 * a).float()


def checkpoint(entry):
    return {name: tensor(t, name, shape, entry["phase"]) for t, (name, shape) in enumerate(entry["keys"].items())}


def images(entry):
    return (0.5 + 0.5 * wave(math.prod(entry["input"]), entry["phase"])).view(entry["input"]).float()


@pytest.mark.parametrize("arch", NETS)
def test_masked_logits_are_those_of_the_published_code(arch, tmp_path):
    entry = entries()[arch]
    state, x = checkpoint(entry), images(entry)
    path = tmp_path / "checkpoint.pth.tar"
    torch.save({"epoch": 100, "arch": arch, "state_dict": {f"module.{n}": t for n, t in state.items()}}, path)
    with torch.device("meta"):  # no random numbers for weights that are replaced
        model = NETS[arch].build(1000 if arch == "ResNet50" else 10)
    model = model.to_empty(device="cpu")
    assert set(model.state_dict()) == {name for name in state if not name.endswith("popup_scores")}

    load_weights(model, path, entry["k"])
    path.unlink()
    model.eval()
    assert sum(int(p.count_nonzero()) for p in model.parameters() if p.dim() > 1) == entry["nonzero_weights"]
    with torch.no_grad():
        logits = model(x)[:, :10]
    torch.testing.assert_close(logits, torch.tensor(entry["logits_first10"]), atol=1e-5, rtol=0)


def test_the_dead_block_of_wide_nets_changes_nothing_but_the_counts(tmp_path):
    entry = entries()["wrn_28_4"]
    state = checkpoint(entry)
    save_file(state, tmp_path / "wrn.safetensors")
    model = Net(kind="wrn_28_4").build(10)
    load_weights(model, tmp_path / "wrn.safetensors", entry["k"])
    model.eval()
    masks = hydra_masks(state, entry["k"])
    live = {name: mask for name, mask in masks.items() if not name.startswith("sub_block1.")}
    kept = sum(int(mask.sum()) for mask in live.values())
    assert sum(int(p.count_nonzero()) for p in model.parameters() if p.dim() > 1) == kept < entry["nonzero_weights"]
    with torch.no_grad():
        torch.testing.assert_close(model(images(entry)), torch.tensor(entry["logits_first10"]), atol=1e-5, rtol=0)
