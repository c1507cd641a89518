"""Two processes that average their gradients are one process with batches twice as large."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hydraprune.core.tensors import load_tensors
from hydraprune.train import OneProcess
from train.two import CASES, trained


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    script = Path(__file__).with_name("two.py")
    path = os.pathsep.join([str(script.parents[1]), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [sys.executable, str(script), str(out)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return out


def ended(folder, case, rank):
    return load_file(folder / f"{case}-{rank}.safetensors"), json.loads((folder / f"{case}-{rank}.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_both_processes_end_with_the_same_bits(folder, case):
    (first, history), (second, other) = (ended(folder, case, rank) for rank in (0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert history == other


@pytest.mark.parametrize("case", ["weights", "scores"])
def test_without_norm_layers_they_are_one_process_with_batches_twice_as_large(folder, case):
    model, expected = trained(case, OneProcess())
    weights, history = ended(folder, case, 0)
    start = CASES[case]().state_dict()
    assert any(not torch.allclose(value, start[name], atol=1e-3) for name, value in weights.items())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6)
    for line, other in zip(history, expected, strict=True):
        assert line == pytest.approx(other, rel=1e-4)


def test_the_state_of_both_is_saved_once(folder):
    tensors, meta = load_tensors(folder / "norm.state")
    assert meta["epoch"] == 2
    statistics = ended(folder, "norm", 1)[0]["1.running_mean"]
    assert torch.equal(tensors["model/1.running_mean"], statistics)
