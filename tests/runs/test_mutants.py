"""Foreign checkpoints that were changed at random are told in one line, or read as they are."""

import resource
import shutil
import time

import pytest
import torch

from runs.mutants import cases, originals, outcome


def test_the_originals_are_read(tmp_path):
    for name, content in originals().items():
        (tmp_path / name).write_bytes(content)
        assert outcome(tmp_path / name, tmp_path / f"of {name}") is None


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_mutants_end_well(tmp_path, seed):
    torch.set_num_threads(1)
    refused = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, content in cases(seed, 100):
        path, folder = tmp_path / name, tmp_path / "ours"
        path.write_bytes(content)
        began = time.perf_counter()
        refused += outcome(path, folder) is not None
        assert time.perf_counter() - began < 60
        shutil.rmtree(folder, ignore_errors=True)
    assert 20 < refused < 100
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
