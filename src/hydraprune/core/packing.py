"""Sparse tensors in few bytes, and back with numpy alone: gaps between what is kept, values in little room, zstd.

A packed file is: 8 bytes `MAGIC`; the length of the header, 4 bytes, little-endian; the header, JSON with its version;
the blobs that the header counts, one after the other; and the SHA-256 of all that. Header and blobs are zstd frames.
A tensor with a mask has one of gaps: for each weight that stays, in the order of the flat tensor, the number of those
before it that are gone, as bytes, where 255 says that 255 are gone and more follow. Its values are those that stay.
Floats are laid out by significance: all first bytes, then all second ones. One of scales follows
that of int8: the step, float32, and the halvings of each channel, a byte (see `steps`).
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hydraprune.core.errors import CheckpointError, SpecError
from hydraprune.core.extras import extra
from hydraprune.core.files import reason, refuse_endless
from hydraprune.core.sealed import SCHEMA, VERSION, unsealed

MAGIC = b"\x89HPK\r\n\x1a\n"
CHECKSUM = 32
Values = Literal["float32", "float16", "bfloat16", "int8"]
"""How the values of weights are written; int8 has a scale for each first index of the tensor, an output channel."""
LEVEL = 1
"""Gaps and values have no repetitions to look for, so higher levels take longer and are no smaller."""
LARGEST, SPARE = 4096, 2**26
"""A file may claim at most so many bytes of dense tensors for each of its own, and so many more."""
HEADER = 2**24
"""Bytes that a header has at most; that of a network with a thousand layers has 300 thousand."""
STORED = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2", "int8": "i1", "int64": "<i8"}
LIMITS = {"float16": 65504.0, "bfloat16": 3.38e38, "int8": 3.37e38}
"""The largest number that is rounded to a finite one."""
DAMAGE = (ValueError, LookupError, TypeError, OverflowError, RecursionError, struct.error)
"""What comes of reading bytes that are no packed file."""
Array = NDArray[Any]
Layer = tuple[str, Array, Array | None]
"""Name, tensor, and its mask if it has one."""


@dataclass(frozen=True)
class PackedFile:
    """What a packed file holds.

    Attributes:
        arrays: name -> tensor, float32 (int64 for counters), what is removed being 0.
        masks: name -> mask (bool, the tensor's shape).
        meta: what was said of them, JSON-ready.
    """

    arrays: dict[str, Array]
    masks: dict[str, Array]
    meta: dict[str, Any]


def pack(
    arrays: Mapping[str, Array], masks: Mapping[str, Array], meta: Mapping[str, Any], values: Values = "float32"
) -> bytes:
    """A packed file.

    Args:
        arrays: name -> tensor, float32, or int64.
        masks: name -> mask (bool, the tensor's shape); what a mask removes is 0 in its tensor.
        meta: JSON-ready, what is said of them.
        values: how tensors with two dimensions or more are written; all others stay as they are.

    Raises:
        SpecError: for another type of values, or of a tensor, or numbers that do not fit it.
        MissingError: without zstandard.
    """
    if values not in get_args(Values):
        raise SpecError(f"values {values!r} is no way to write weights; choose one of {', '.join(get_args(Values))}")
    press = require_zstd().ZstdCompressor(level=LEVEL).compress
    tensors, blobs = [], []
    for name, array in arrays.items():
        if array.dtype not in (np.float32, np.int64):
            raise SpecError(f"{name!r} is {array.dtype}; give float32, or int64 for counters")
        kind = "int64" if array.dtype == np.int64 else values if array.ndim > 1 else "float32"
        mask = masks.get(name)
        if kind in LIMITS and not (np.abs(array) <= LIMITS[kind]).all():
            raise SpecError(f"{name!r} has values beyond {LIMITS[kind]:g} or not finite, so {kind} cannot hold it")
        parts = [] if mask is None else [_gaps(mask)]
        parts += _written(array, mask, kind)
        frames = [press(part) for part in parts]
        entry = {"name": name, "shape": list(array.shape), "values": kind, "blobs": [len(frame) for frame in frames]}
        tensors.append(entry | ({} if mask is None else {"kept": int(mask.sum())}))
        blobs += frames
    body = b"".join(blobs)
    header = press(json.dumps({SCHEMA: VERSION, "meta": dict(meta), "tensors": tensors}).encode())
    content = MAGIC + struct.pack("<I", len(header)) + header + body
    return content + hashlib.sha256(content).digest()


def unpack(content: bytes, where: str) -> PackedFile:
    """What `pack` wrote. Nothing is unpickled, and no more memory is taken than a file of this length may claim.

    Raises:
        CheckpointError: if `content` is no packed file, or truncated, or altered; it starts with `where`.
        MissingError: without zstandard.
    """
    meta, layers = unpack_each(content, where)
    arrays, masks = dict[str, Array](), dict[str, Array]()
    for name, array, mask in layers:
        arrays[name] = array
        if mask is not None:
            masks[name] = mask
    return PackedFile(arrays, masks, meta)


def unpack_each(content: bytes, where: str) -> tuple[dict[str, Any], Iterator[Layer]]:
    """The same, one tensor at a time: what was said of them, and an iterator over (name, tensor, mask or None).

    The whole file is checked by its checksum before the first.

    Raises:
        CheckpointError: as `unpack`; the iterator does so, too.
        MissingError: without zstandard.
    """
    try:
        header, body = _opened(content)
        meta, entries = _mapping(header["meta"]), list(header["tensors"])
    except DAMAGE as error:
        raise _damaged(where, error) from None
    return meta, _layers(entries, body, LARGEST * len(content) + SPARE, where)


def _damaged(where: str, error: Exception) -> CheckpointError:
    return CheckpointError(f"{where} is no whole packed file ({reason(error)}); restore it or export it again")


def _opened(content: bytes) -> tuple[dict[str, Any], memoryview]:
    """Header and blobs of a file that has its checksum."""
    if content[: len(MAGIC)] != MAGIC:
        raise ValueError("it does not begin as one")
    whole, checksum = memoryview(content)[:-CHECKSUM], content[-CHECKSUM:]
    if hashlib.sha256(whole).digest() != checksum:
        raise ValueError("its checksum is not that of its content")
    (length,) = struct.unpack_from("<I", whole, len(MAGIC))
    start = len(MAGIC) + 4
    header = json.loads(_expanded(bytes(whole[start : start + length]), HEADER))
    refuse_endless(header)
    return unsealed(_mapping(header)), whole[start + length :]


def _layers(entries: list[Any], body: memoryview, left: int, where: str) -> Iterator[Layer]:
    """Each tensor of a file that may claim `left` bytes of them."""
    names = set[str]()
    try:
        for entry in entries:
            name, shape, kind = str(entry["name"]), _shape(entry["shape"]), str(entry["values"])
            size = math.prod(shape)
            left -= 4 * (size + shape[0] if shape else size)  # int8 has scales
            if left < 0:
                raise ValueError(f"{name!r} claims more memory than a file of its length may")
            frames = []
            for count in entry["blobs"]:
                frames.append(bytes(body[: _whole(count)]))
                body = body[count:]
            kept, mask = size, None
            if "kept" in entry:
                if (kept := _whole(entry["kept"])) > size:
                    raise ValueError(f"{kept} of {size} weights cannot be kept")
                mask = _mask(frames.pop(0), kept, shape)
            values = _read(frames, kind, kept, shape, mask)
            if name in names:
                raise ValueError(f"{name!r} is there twice")
            names.add(name)
            yield name, values, mask
        if len(body):
            raise ValueError(f"{len(body)} bytes are left over")
    except DAMAGE as error:
        raise _damaged(where, error) from None


def _gaps(mask: Array) -> bytes:
    gaps = np.diff(np.flatnonzero(mask), prepend=-1) - 1
    more, rest = np.divmod(gaps, 255)
    ends = np.cumsum(more + 1) - 1
    out = np.full(int(ends[-1]) + 1 if len(ends) else 0, 255, np.uint8)
    out[ends] = rest
    return out.tobytes()


def _mask(frame: bytes, kept: int, shape: tuple[int, ...]) -> Array:
    size = math.prod(shape)
    gaps = np.frombuffer(_expanded(frame, kept + size // 255), np.uint8)
    ends = np.flatnonzero(gaps != 255)
    places = np.cumsum(gaps, dtype=np.int64)[ends] + np.arange(len(ends))
    if len(places) != kept or (kept and (places[-1] >= size or ends[-1] != len(gaps) - 1)):
        raise ValueError(f"its gaps do not place {kept} of {size} weights")
    mask = np.zeros(size, bool)
    mask[places] = True
    return mask.reshape(shape)


def steps(array: Array) -> tuple[np.float32, NDArray[np.int32]]:
    """What a level of int8 stands for: `step / 2**halvings`, for a tensor's channels (its first index).

    The step takes the tensor's largest number to level 127; a channel's halvings are as many as its own numbers allow.
    So each uses 64 levels or more of each sign, and channels of like size share a scale, which has less entropy than
    scales that fit each of them.

    Args:
        array: float32 (C, ...).

    Returns:
        The step, at least 0, and int32 (C,) halvings, 0 to 255.
    """
    largest = np.abs(array).reshape(len(array), math.prod(array.shape[1:])).max(1, initial=0)
    most = np.float32(largest.max(initial=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        halvings = np.floor(np.log2(most.astype(np.float64) / largest))
    return np.float32(most / np.float32(127)), np.where(largest > 0, halvings, 0).clip(0, 255).astype(np.int32)


def _written(array: Array, mask: Array | None, kind: str) -> list[bytes]:
    if kind == "int8":
        step, halvings = steps(array)
        scale = np.ldexp(step, -halvings).reshape(-1, *(1 for _ in array.shape[1:]))
        # Scales so small that they have lost bits would give other levels.
        levels = np.rint(array / np.where(scale > 0, scale, 1)).clip(-127, 127).astype(np.int8)
        return [
            (levels if mask is None else levels[mask]).tobytes(),
            step.tobytes() + halvings.astype(np.uint8).tobytes(),
        ]
    left = array if mask is None else array[mask]
    if kind == "bfloat16":
        bits = np.ascontiguousarray(left).view(np.uint32)
        left = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)  # to the nearest, ties to even
    return [_planes(left.astype(STORED[kind]))]


def _read(frames: list[bytes], kind: str, kept: int, shape: tuple[int, ...], mask: Array | None) -> Array:
    if kind not in STORED or len(frames) != (2 if kind == "int8" else 1):
        raise ValueError(f"it has values {kind!r} in {len(frames)} parts")
    left = _flat(frames[0], STORED[kind], kept)
    if kind == "bfloat16":
        left = (left.astype(np.uint32) << 16).view(np.float32)
    dtype = np.int64 if kind == "int64" else np.float32
    dense = np.zeros(shape, dtype)
    if mask is None:
        dense[...] = left.reshape(shape).astype(dtype)
    else:
        dense[mask] = left.astype(dtype)
    if kind == "int8":
        content = _expanded(frames[1], 4 + shape[0])
        if len(content) != 4 + shape[0]:
            raise ValueError(f"{len(content)} bytes stand for the scales of {shape[0]} channels")
        step = np.frombuffer(content, "<f4", 1)
        if not 0 <= step <= LIMITS[kind] / 127:
            raise ValueError(f"{step} is no scale")
        scale = np.ldexp(step, -np.frombuffer(content, np.uint8, -1, 4).astype(np.int32))
        dense *= scale.reshape(-1, *(1 for _ in shape[1:]))
    return dense


def _planes(array: Array) -> bytes:
    return np.ascontiguousarray(array.reshape(-1)).view(np.uint8).reshape(-1, array.itemsize).T.tobytes()


def _flat(frame: bytes, stored: str, count: int) -> Array:
    width = np.dtype(stored).itemsize
    content = _expanded(frame, width * count)
    if len(content) != width * count:
        raise ValueError(f"{len(content)} bytes stand for {count} values of {width}")
    planes = np.frombuffer(content, np.uint8).reshape(width, count)
    return np.ascontiguousarray(planes.T).reshape(-1).view(stored)


def _expanded(frame: bytes, most: int) -> bytes:
    """The content of a zstd frame of at most so many bytes."""
    zstd = require_zstd()
    try:
        if zstd.frame_content_size(frame) not in range(most + 1):
            raise ValueError("a part claims another length than it can have")
        content: bytes = zstd.ZstdDecompressor().decompress(frame, max_output_size=most)
    except zstd.ZstdError as error:
        raise ValueError(str(error)) from None
    return content


def require_zstd() -> Any:
    """The package zstandard.

    Raises:
        MissingError: without it.
    """
    with extra("packed", "a packed file"):
        import zstandard
    return zstandard


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("its header is no mapping")
    return value


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > 16:
        raise ValueError(f"{value!r} is no shape")
    return tuple(map(_whole, value))


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**40:
        raise ValueError(f"{value!r} is no count")
    return value
