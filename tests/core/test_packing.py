"""Packed files: exact where they should be, near their limit, and safe to read whoever wrote them."""

import hashlib
import json
import struct
import subprocess
import sys

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from hydraprune.core.errors import CheckpointError, SpecError
from hydraprune.core.packing import CHECKSUM, MAGIC, pack, unpack, unpack_each

SHAPES = st.lists(st.integers(0, 7), min_size=1, max_size=4).map(tuple)


def made(shape, share, seed=0):
    """A tensor and a mask that keeps about `share` of it."""
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < share
    return np.where(mask, rng.standard_normal(shape), 0).astype(np.float32), mask


def bits(array):
    return array.view(np.uint32) if array.dtype == np.float32 else array


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.sampled_from([0, 0.01, 0.3, 1]), st.integers(0, 9))
def test_float32_comes_back_bit_by_bit(shape, share, seed):
    weight, mask = made(shape, share, seed)
    arrays = {"w": weight, "bias": np.float32([np.nan, -0.0, np.inf]), "count": np.array(7)}
    found = unpack(pack(arrays, {"w": mask}, {"of": "this"}), "file")
    assert found.meta == {"of": "this"}
    assert found.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        back = found.arrays[name]
        assert (back.dtype, back.shape) == (array.dtype, array.shape)
        assert np.array_equal(bits(back), bits(array))
    assert np.array_equal(found.masks["w"], mask)


@pytest.mark.parametrize("gap", [0, 1, 253, 254, 255, 256, 509, 510, 511, 5000])
def test_every_gap(gap):
    mask = np.zeros((2, gap + 2), bool)
    mask[0, gap] = mask[1, -1] = True
    found = unpack(pack({"w": mask.astype(np.float32)}, {"w": mask}, {}), "file")
    assert np.array_equal(found.masks["w"], mask)


@pytest.mark.parametrize(("values", "bound"), [("float16", 2**-11), ("bfloat16", 2**-8), ("float32", 0)])
def test_rounding_is_to_the_nearest(values, bound):
    weight, mask = made((8, 30, 3), 0.5)
    found = unpack(pack({"w": weight}, {"w": mask}, {}, values), "file").arrays["w"]
    assert (np.abs(found - weight) <= bound * np.abs(weight)).all()
    again = unpack(pack({"w": found}, {"w": mask}, {}, values), "file").arrays["w"]
    assert np.array_equal(again, found)
    assert not found[~mask].any()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1e-30, 1e-4, 0.3, 0.49, 0.51, 1.0, 7.0]), min_size=1, max_size=6))
def test_every_channel_of_int8_has_a_scale_that_suits_it(sizes):
    weight, mask = made((len(sizes), 50, 3), 0.5)
    weight *= np.float32(sizes)[:, None, None]
    found = unpack(pack({"w": weight}, {"w": mask}, {}, "int8"), "file").arrays["w"]
    for channel, back in zip(weight, found, strict=True):
        step, largest = np.abs(weight).max() / 127, np.abs(channel).max()
        while 0 < largest <= 127 * step / 2:  # halved as long as it fits
            step /= 2
        assert np.abs(back - channel).max() <= 0.501 * step
        assert np.allclose(back / (step or 1), np.rint(channel / (step or 1)), atol=1e-3)
        assert largest == 0 or step <= 2 * largest / 127


@pytest.mark.parametrize("size", [1e-45, 1e-42, 1e-38])
def test_numbers_that_are_hardly_there_stay_small(size):
    weight = np.float32([[1, -1, 0.5], [size, -size, 0], [0, 0, 0]])
    for rows in (slice(0, 3), slice(1, 3)):
        found = unpack(pack({"w": weight[rows]}, {}, {}, "int8"), "file").arrays["w"]
        assert np.abs(found - weight[rows]).max() <= max(1e-40, np.abs(weight[rows]).max() / 200)


@pytest.mark.parametrize(("sparsity", "times"), [(0.9, 29), (0.95, 53), (0.99, 215)])
def test_weights_that_are_the_largest_take_less_than_their_bits(sparsity, times):
    weight = np.random.default_rng(0).standard_normal((512, 512, 3, 3)).astype(np.float32)
    mask = np.abs(weight) > np.quantile(np.abs(weight), sparsity)
    assert weight.nbytes > times * len(pack({"w": weight * mask}, {"w": mask}, {}, "int8"))


@pytest.mark.parametrize("values", ["float16", "bfloat16", "int8"])
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1), (2, 0, 5)])
def test_small_and_empty_tensors_are_rounded_too(values, shape):
    weight, mask = made(shape, 0.5)
    found = unpack(pack({"w": weight, "b": np.float32([np.inf])}, {"w": mask}, {}, values), "file")
    assert found.arrays["w"].shape == shape
    assert np.isinf(found.arrays["b"]).all()  # what has one dimension is not rounded


@pytest.mark.parametrize("share", [0.1, 0.05, 0.01])
@pytest.mark.parametrize(("values", "width"), [("float32", 32), ("float16", 16), ("bfloat16", 16)])
def test_a_random_mask_costs_its_entropy(share, values, width):
    weight, mask = made((256, 256, 3, 3), share)
    p = mask.mean()
    limit = mask.size * -(p * np.log2(p) + (1 - p) * np.log2(1 - p)) + width * mask.sum()
    assert 8 * len(pack({"w": weight}, {"w": mask}, {}, values)) < 1.05 * limit


def test_it_is_read_one_tensor_at_a_time():
    (first, mask), (second, _) = made((50, 60), 0.1), made((7, 8), 0.5, 1)
    content = pack({"a": first, "b": second, "c": np.float32([1])}, {"a": mask}, {"of": "this"})
    meta, layers = unpack_each(content, "file")
    assert meta == {"of": "this"}
    name, array, found = next(layers)
    assert (name, np.array_equal(array, first), np.array_equal(found, mask)) == ("a", True, True)
    assert [(name, mask) for name, _, mask in layers] == [("b", None), ("c", None)]
    with pytest.raises(CheckpointError, match="its checksum is not that of its content"):
        unpack_each(content[:-1] + b"x", "file")  # before the first


def test_numpy_alone_reads_it(tmp_path):
    weight, mask = made((4, 5), 0.5)
    (tmp_path / "net").write_bytes(pack({"w": weight}, {"w": mask}, {}))
    script = (
        "import sys; from pathlib import Path; from hydraprune.core.packing import unpack\n"
        "print(unpack(Path('net').read_bytes(), 'net').arrays['w'].sum().item(), 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    total, torch_too = ran.stdout.split()
    assert (float(total), torch_too) == (pytest.approx(weight.sum(), rel=1e-6), "False")


@pytest.mark.parametrize(
    ("arrays", "values", "complaint"),
    [
        ({"w": np.zeros((2, 2))}, "float32", "'w' is float64; give float32, or int64 for counters"),
        ({"w": np.float32([[1e5, 1]])}, "float16", "'w' has values beyond 65504 or not finite, so float16 cannot hold"),
        ({"w": np.float32([[np.nan, 1]])}, "int8", "'w' has values beyond .* or not finite, so int8 cannot hold it"),
        ({"w": np.float32([[np.inf, 1]])}, "bfloat16", "'w' has values beyond .* so bfloat16 cannot hold it"),
        ({}, "float8", "values 'float8' is no way to write weights; choose one of float32, float16, bfloat16, int8"),
    ],
)
def test_what_cannot_be_packed(arrays, values, complaint):
    with pytest.raises(SpecError, match=complaint):
        pack(arrays, {}, {}, values)


FILE = pack(*[{"w": w} for w in made((6, 40), 0.2)], {"net": "x"}, "int8")


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_damaged_file_is_refused_or_right(data):
    content = bytearray(FILE)
    kind = data.draw(st.sampled_from(["flip", "cut", "grow", "swap"]))
    place = data.draw(st.integers(0, len(FILE) - 1))
    if kind == "flip":
        content[place] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del content[place:]
    elif kind == "grow":
        content[place:place] = data.draw(st.binary(min_size=1, max_size=9))
    else:
        content = content[place:] + content[:place]
    if content == FILE:
        return
    with pytest.raises(CheckpointError, match=r"^file is no whole packed file \("):
        unpack(bytes(content), "file")


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_damage_with_a_checksum_of_its_own_is_refused_or_harmless(data):
    content = bytearray(FILE[:-CHECKSUM])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(len(MAGIC), len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    content += hashlib.sha256(content).digest()
    try:
        found = unpack(bytes(content), "file")
    except CheckpointError:
        return
    assert sum(array.nbytes for array in found.arrays.values()) < 10_000


def test_a_header_that_would_fill_the_memory_is_refused():
    bomb = zstandard.compress(b" " * 2**25)
    content = MAGIC + struct.pack("<I", len(bomb)) + bomb
    with pytest.raises(CheckpointError, match="a part claims another length than it can have"):
        unpack(content + hashlib.sha256(content).digest(), "file")


def signed(change):
    """The file with another header, as whoever knows the format would sign it."""
    (length,) = struct.unpack_from("<I", FILE, len(MAGIC))
    start = len(MAGIC) + 4
    header = json.loads(zstandard.decompress(FILE[start : start + length]))
    body = change(header, FILE[start + length : -CHECKSUM])
    text = zstandard.compress(json.dumps(header).encode())
    content = MAGIC + struct.pack("<I", len(text)) + text + body
    return content + hashlib.sha256(content).digest()


def entry(**changes):
    return lambda header, body: (header["tensors"][0].update(changes), body)[1]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (entry(shape=[6_000_000, 4_000_000]), "claims more memory than a file of"),
        (entry(shape=[6, 30]), "gaps do not place"),
        (entry(shape=[6, -40]), "-40 is no count"),
        (entry(shape="6"), "is no shape"),
        (entry(shape=[1] * 20), "is no shape"),
        (entry(kept=3), "gaps do not place 3 of 240|claims another length"),
        (entry(kept=True), "True is no count"),
        (entry(kept=2**39), "549755813888 of 240 weights cannot be kept"),
        (entry(shape=[2**39, 0]), "claims more memory"),
        (entry(values="float64"), "it has values 'float64'"),
        (entry(values="float32"), "it has values 'float32' in 2 parts"),
        (entry(blobs=[1, 2, 3]), ""),
        (entry(blobs=[]), ""),
        (entry(blobs=[10**30, 1, 1]), "is no count"),
        (lambda header, body: (header.update(tensors=5), body)[1], ""),
        (lambda header, body: (header["tensors"].append(header["tensors"][0]), body * 2)[1], "'w' is there twice"),
        (lambda header, body: body + b"more", "4 bytes are left over"),
        (lambda header, body: b"", ""),
        (lambda header, body: (header.pop("meta"), body)[1], "meta"),
        (lambda header, body: (header.update(schema=99), body)[1], "install a newer hydraprune"),
    ],
)
def test_a_file_that_was_made_to_deceive_is_refused(change, complaint):
    with pytest.raises(CheckpointError, match=rf"^file is no whole packed file \(.*({complaint})"):
        unpack(signed(change), "file")


def test_what_is_said_must_not_be_nested_endlessly():
    deep = 1
    for _ in range(400):
        deep = {"a": deep}
    with pytest.raises(CheckpointError, match=r"is no whole packed file \(it is nested too deeply\)"):
        unpack(pack({}, {}, {"recipe": deep}), "net.hpk")
