"""Files that others saved: what is read of them, and what they may not make us do."""

import argparse
import copy
import pathlib
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hydraprune.core.errors import CheckpointError
from hydraprune.nets.saved import read_state

BESIDE = {
    "epoch": 90,
    "best": np.float64(0.5),
    "args": argparse.Namespace(lr=0.1, nested=argparse.Namespace()),
    "folder": pathlib.PurePosixPath("runs"),
    "history": np.arange(4),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.pth"


@pytest.fixture
def state():
    return {"w": torch.randn(3, 4), "b": torch.randn(3)}


@pytest.mark.parametrize("zipped", [True, False])
def test_other_objects_do_not_hide_the_tensors_and_are_not_made(path, state, zipped):
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    content = {
        "state_dict": {f"module.{n}": t for n, t in state.items()},
        "optimizer": optimizer.state_dict(),
        **BESIDE,
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    found = read_state(path)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


class Loud:
    def __reduce__(self):
        return exec, ("raise SystemExit('it was run')",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["beside", "instead", "within"])
def test_nothing_is_run(path, state, where, zipped):
    content = {
        "beside": {"state_dict": state, "loud": Loud()},
        "instead": Loud(),
        "within": {"state_dict": {**state, "x": Loud()}},
    }[where]
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    if where == "beside":
        assert read_state(path).keys() == state.keys()
    else:
        with pytest.raises(CheckpointError, match="never unpickled"):
            read_state(path)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net"])
def test_what_programs_call_the_state_dict(path, state, key):
    torch.save({key: state, "acc": 81.2}, path)
    assert read_state(path).keys() == state.keys()


def test_prefixes_of_parallel_and_compiled_networks(path, state):
    torch.save({f"module._orig_mod.{name}": tensor for name, tensor in state.items()}, path)
    assert read_state(path).keys() == state.keys()
    torch.save({"module.w": state["w"], "w": state["w"]}, path)
    with pytest.raises(CheckpointError, match="holds 'w' twice"):
        read_state(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_short_floats_become_float32(path, dtype):
    torch.save({"w": torch.arange(4.0).to(dtype)}, path)
    assert read_state(path)["w"].dtype == torch.float32
    assert read_state(path)["w"].tolist() == [0, 1, 2, 3]


def test_a_folder_stands_for_its_one_checkpoint(tmp_path, state):
    with pytest.raises(CheckpointError, match="no such file; give the path"):
        read_state(tmp_path)
    (tmp_path / "README.md").touch()
    save_file(state, tmp_path / "model.safetensors")
    assert read_state(tmp_path).keys() == state.keys()
    torch.save(state, tmp_path / "best.pth.tar")
    with pytest.raises(
        CheckpointError, match=r"holds several checkpoints \(best\.pth\.tar, model\.safetensors\); name"
    ):
        read_state(tmp_path)


def test_a_file_that_would_grow_is_refused(path, state, tmp_path):
    """Zeros compressed a thousand times; torch itself never compresses."""
    torch.save(state, tmp_path / "source.pth")
    with zipfile.ZipFile(tmp_path / "source.pth") as source, zipfile.ZipFile(path, "w") as bomb:
        for entry in source.infolist():
            large = entry.filename.endswith("data/0")
            kind = zipfile.ZIP_DEFLATED if large else zipfile.ZIP_STORED
            bomb.writestr(entry.filename, bytes(50_000_000) if large else source.read(entry), kind)
    assert path.stat().st_size < 100_000
    with pytest.raises(CheckpointError, match="damaged"):
        read_state(path)


def test_records_that_lie_over_one_another_are_refused(path):
    """A directory that lists the same bytes fifty times."""
    torch.save({"w": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        (record,) = (entry for entry in archive.filelist if entry.filename.endswith("data/0"))
        for number in range(50):
            again = copy.copy(record)
            again.filename = f"a/data/{number + 1}"
            archive.filelist.append(again)
        archive.writestr("a/end", b"")  # so that the directory is written again
    with pytest.raises(CheckpointError, match=r"damaged.*\(ValueError\)") as caught:
        read_state(path)
    assert "claims more bytes than it has" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(1 << 40),
        torch.zeros(4, dtype=torch.complex64),
        torch.eye(3).to_sparse(),
        torch.empty(4, device="meta"),
    ],
    ids=["expanded", "complex", "sparse", "meta"],
)
def test_tensors_that_stand_for_more_than_they_hold_are_refused(path, tensor):
    torch.save({"w": tensor}, path)
    with pytest.raises(CheckpointError, match=r"'w' is no plain tensor of the file's own bytes|damaged"):
        read_state(path)


def test_a_header_that_claims_more_than_the_file_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    header = b'{"w":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(CheckpointError, match="damaged"):
        read_state(path)
