"""Files of tensors are whole or absent, and damage is found before it is used."""

import json

import pytest
import torch
from safetensors.torch import save_file

from hydraprune.core import tensors as stored
from hydraprune.core.errors import CheckpointError
from hydraprune.core.tensors import load_tensors, pack_mask, save_tensors, unpack_mask

META = {"epoch": 3, "history": [{"loss": 0.1, "lr": 1e-05}], "key": "ä", "none": None, "z": 1, "a": {"y": [1, 2]}}


def samples() -> dict[str, torch.Tensor]:
    base = torch.randn(4, 6)
    return {
        "float": base,
        "view": base[1:3],  # shares memory with the first
        "transposed": base.t(),
        "channels_last": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "double": torch.randn(3, dtype=torch.float64),
        "half": torch.randn(3).half(),
        "bfloat": torch.randn(5).bfloat16(),
        "long": torch.tensor(7),
        "bool": torch.tensor([True, False, True]),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "nan": torch.tensor([float("nan"), float("inf")]),
        "empty": torch.zeros(0, 3),
    }


def test_tensors_and_meta_round_trip(tmp_path):
    saved, path = samples(), tmp_path / "deep" / "er" / "model.safetensors"
    save_tensors(path, saved, META)
    loaded, meta = load_tensors(path)
    assert meta == META
    assert loaded.keys() == saved.keys()
    for name, value in saved.items():
        assert loaded[name].dtype == value.dtype
        assert not loaded[name].requires_grad
        torch.testing.assert_close(loaded[name], value.detach(), rtol=0, atol=0, equal_nan=True)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert path.stat().st_mode & 0o777 == 0o644


def test_equal_content_makes_equal_files(tmp_path):
    saved = samples()
    for number in range(4):
        save_tensors(tmp_path / str(number), saved, META)
    assert len({(tmp_path / str(number)).read_bytes() for number in range(4)}) == 1


def test_no_tensors_and_no_meta_round_trip(tmp_path):
    save_tensors(tmp_path / "x", {}, {})
    assert load_tensors(tmp_path / "x") == ({}, {})


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path):
    path = tmp_path / "model.safetensors"
    save_tensors(path, {"weight": torch.randn(3), "bits": torch.tensor([5], dtype=torch.uint8)}, {"epoch": 3})
    whole = path.read_bytes()
    assert len(whole) > 8 + 13
    unnoticed = []
    for position in range(len(whole)):
        for bit in {0, position % 8}:  # the lowest turns a digit into another
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                load_tensors(path)
                unnoticed.append((position, bit))
            except CheckpointError:
                pass
    assert unnoticed == []


@pytest.mark.parametrize(
    ("old", "new"), [(b'"F32"', b'"I32"'), (b"[2,3]", b"[3,2]"), (b'"weight"', b'"wieght"'), (b"epoch", b"epoxy")]
)
def test_an_edited_header_is_found(tmp_path, old, new):
    path = tmp_path / "model.safetensors"
    save_tensors(path, {"weight": torch.randn(2, 3)}, {"epoch": 3})
    whole = path.read_bytes()
    assert whole.count(old) == 1
    path.write_bytes(whole.replace(old, new))
    with pytest.raises(CheckpointError, match="has been altered: its checksum does not match"):
        load_tensors(path)


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, share):
    path = tmp_path / "model.safetensors"
    save_tensors(path, samples(), META)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match="corrupt or truncated"):
        load_tensors(path)


def test_missing_and_foreign_files_are_refused_with_a_remedy(tmp_path):
    with pytest.raises(CheckpointError, match="is missing; give the folder of a finished stage"):
        load_tensors(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="corrupt"):
        load_tensors(tmp_path)
    for number, metadata in enumerate([None, {"format": "pt"}]):
        path = tmp_path / f"foreign{number}.safetensors"
        save_file({"weight": torch.zeros(2)}, path, metadata)
        with pytest.raises(CheckpointError, match=r"is no hydraprune checkpoint.*--weights"):
            load_tensors(path)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "pickle.pt")
    with pytest.raises(CheckpointError, match="corrupt"):
        load_tensors(tmp_path / "pickle.pt")


@pytest.mark.parametrize("shape", [(), (1,), (7,), (8,), (9,), (3, 5), (2, 3, 3, 3), (0, 4)])
def test_masks_round_trip_as_packed_bits(shape):
    mask = torch.rand(shape) < 0.3
    packed = pack_mask(mask)
    assert packed.dtype == torch.uint8
    assert packed.shape == ((mask.numel() + 7) // 8,)
    assert torch.equal(unpack_mask(packed, shape), mask)


def test_bits_are_packed_most_significant_first():
    assert pack_mask(torch.tensor([[True, False, False], [False, True, False]])).tolist() == [0b10001000]


@pytest.mark.parametrize("shape", [(8,), (17,), (3, 3, 3)])
def test_a_mask_of_another_size_is_refused(shape):
    with pytest.raises(CheckpointError, match="does not fit a weight of shape"):
        unpack_mask(pack_mask(torch.ones(9, dtype=torch.bool)), shape)
    with pytest.raises(CheckpointError):
        unpack_mask(torch.zeros(2), (9,))


@pytest.mark.parametrize("header", [b"[]", b"{}", b"null", b'["x"]', b'["x", 1]', b"[" * 5000])
def test_a_header_that_says_nothing_is_one_error(tmp_path, header):
    save_file({"a": torch.ones(1)}, tmp_path / "x", {stored.HEADER: header.decode()})
    with pytest.raises(CheckpointError, match="has been altered"):
        load_tensors(tmp_path / "x")


@pytest.mark.parametrize("said", ["[1]", "1", "{", "[" * 5000])
def test_meta_that_is_no_mapping_is_one_error(tmp_path, said):
    tensors = {"a": torch.ones(1)}
    save_file(tensors, tmp_path / "x", {stored.HEADER: json.dumps([stored._digest(tensors, said), said])})
    with pytest.raises(CheckpointError, match="has been altered"):
        load_tensors(tmp_path / "x")


def test_meta_that_is_nested_endlessly_is_one_error(tmp_path):
    deep = 1
    for _ in range(400):
        deep = {"a": deep}
    save_tensors(tmp_path / "a.safetensors", {"w": torch.ones(2)}, {"recipe": deep})
    with pytest.raises(CheckpointError, match="has been altered"):
        load_tensors(tmp_path / "a.safetensors")
