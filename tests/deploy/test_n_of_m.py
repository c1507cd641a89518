"""Zeros as sparse tensor cores want them."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import hydraprune as hp
from hydraprune.deploy.opened import opened
from hydraprune.masks.source import FixedMask
from hydraprune.runs.checkpoint import save
from misuse import refused


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=2), nn.Flatten(), nn.Linear(12 * 16, 5)
    )


@pytest.fixture
def pruned(tmp_path):
    model = network()
    hp.prune(hp.MaskView(model, ["0"]), "magnitude", structure={"kind": "n:m", "n": 2, "m": 4})
    hp.MaskView(model).freeze()
    save(tmp_path / "net", model)
    return tmp_path / "net", model


def test_what_was_pruned_so_is_written_so(pruned, tmp_path):
    folder, model = pruned
    hp.export(folder, tmp_path / "out.safetensors", "n:m", model=network(), shape=(3, 8, 8))
    found = load_file(tmp_path / "out.safetensors")
    assert bool(found["0.weight"].all())  # exempt
    for output in range(12):  # of 4 input channels each, in 2 groups
        for row in range(3):
            for column in range(3):
                assert int((found["2.weight"][output, :, row, column] != 0).sum()) == 2
    linear = found["4.weight"].view(5, -1, 4)
    assert bool(((linear != 0).sum(2) <= 2).all())
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(opened(tmp_path / "out.safetensors", given=network())(x), model.eval()(x))


def test_a_layer_with_more_is_named_with_its_count(pruned, tmp_path):
    folder, _ = pruned
    plain = network()
    plain.load_state_dict(load_file(folder / "model.safetensors"))
    with torch.no_grad():
        plain[2].weight[0, :, 1, 1] = torch.tensor([1.0, 2.0, 3.0, 0.0])
        plain[2].weight[5, :, 0, 0] = 1.0
    hp.MaskView(plain).attach({f"{n}.weight": FixedMask(plain[n].weight != 0) for n in (2, 4)})
    save(folder, plain)
    with refused("'2.weight' has 3 weights more than 2 of every 4; prune it by"):
        hp.export(folder, tmp_path / "out.safetensors", "n:m", model=network(), shape=(3, 8, 8))
    assert not (tmp_path / "out.safetensors").exists()
    kernels = plain[2].weight.detach().movedim(1, 3).flatten(0, 2).tolist()  # of 4 input channels each
    beyond = sum(max(0, sum(w != 0 for w in pair) - 1) for run in kernels for pair in (run[:2], run[2:]))
    with refused(f"'2.weight' has {beyond} weights more than 1 of every 2"):
        finer = {"kind": "n:m", "n": 1, "m": 2}
        hp.export(folder, tmp_path / "out.safetensors", finer, model=network(), shape=(3, 8, 8))


def test_a_dense_network_has_no_pattern(tmp_path):
    save(tmp_path / "net", network())
    with refused("no layer is pruned to 2 of 4; export it as packed, dense or onnx"):
        hp.export(tmp_path / "net", tmp_path / "out.safetensors", "n:m", model=network(), shape=(3, 8, 8))


def test_a_pattern_that_removes_nothing_is_none(pruned, tmp_path):
    with refused("4 of every 4 weights removes none"):
        hp.export(pruned[0], tmp_path / "out", {"kind": "n:m", "n": 4}, model=network(), shape=(3, 8, 8))
