"""A last stage that trains with rounding: what it hands on, and where it is refused."""

import pytest
import torch

from hydraprune.core.errors import SpecError
from hydraprune.core.packing import pack, unpack
from hydraprune.recipes.runner import run
from hydraprune.runs.checkpoint import open_checkpoint
from recipes.tiny import contents, tiny
from train.small import KillAfterEpoch, Killed

INT8 = "stages.finetune.quantize=int8"


def test_its_checkpoint_is_packed_in_int8_without_loss(tmp_path):
    run(tiny(INT8), tmp_path / "run")
    pruned, tuned = (open_checkpoint(tmp_path / "run" / stage) for stage in ("prune", "finetune"))
    assert all(torch.equal(mask, tuned.masks[name]) for name, mask in pruned.masks.items())
    assert tuned.values.keys() == pruned.values.keys()
    arrays, masks = ({n: t.numpy() for n, t in each.items()} for each in (tuned.values, tuned.masks))
    packed = unpack(pack(arrays, masks, {}, "int8"), "here").arrays
    assert all((packed[name] == arrays[name]).all() for name in arrays)
    assert not all((packed[name] == tensor.numpy()).all() for name, tensor in pruned.values.items())


def test_a_run_that_is_killed_ends_with_the_same_files(tmp_path, monkeypatch):
    run(tiny(INT8), tmp_path / "whole")
    cut = "hydraprune.recipes.training.Forecast"
    monkeypatch.setattr(cut, lambda left, told: KillAfterEpoch(2 if left == 0 else 9))
    with pytest.raises(Killed):
        run(tiny(INT8), tmp_path / "cut")
    assert (tmp_path / "cut" / "finetune" / "state.safetensors").exists()
    monkeypatch.undo()
    run(tiny(INT8), tmp_path / "cut")
    whole, cut = contents(tmp_path / "whole"), contents(tmp_path / "cut")
    assert cut["finetune/model.safetensors"] == whole["finetune/model.safetensors"]


def test_masks_may_not_move_meanwhile():
    with pytest.raises(SpecError, match="masks may not move while weights are rounded"):
        tiny("stages.prune.quantize=int8")
    pruner = ["stages.finetune.pruner=magnitude", "stages.finetune.budget={kind: uniform, sparsity: 0.5}"]
    with pytest.raises(SpecError, match="masks may not move while weights are rounded"):
        tiny(INT8, *pruner)
