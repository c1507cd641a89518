"""Ways to damage a file: its bytes, its structure, and content that is odd under a right signature."""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hydraprune.core.tensors import save_tensors

DEEP = 20_000
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 10**30, 1e308, float("nan"), float("inf"), "", "x", "../x", "é\u2028\0", "9" * 5000, [], {},
    [[]], {"kind": "x"}, [None], "<script>",
)  # fmt: skip


def damage(path: Path, rng: random.Random) -> tuple[str, bool]:
    """Damage the file at `path`; what was done, and whether it is still as good as any other file of its format.

    A file with a signature is as good as another only where the signature was renewed.
    """
    structured = _STRUCTURED.get(path.suffix)
    if structured is not None and rng.random() < 0.6:
        return structured(path, rng)
    what, content = _bytes(path.read_bytes(), rng)
    path.write_bytes(content)
    return what, _believable(path)


def _believable(path: Path) -> bool:
    """Whether the file, which nothing signs, holds what its format allows."""
    try:
        if path.suffix == ".json":
            return path.name != "checkpoint.json" and json.loads(path.read_text()) is not None
        if path.suffix == ".yaml":
            return yaml.safe_load(path.read_text()) is not None
        if path.suffix == ".jsonl":
            return all(isinstance(json.loads(line), dict) for line in path.read_text().split("\n")[:-1])
    except (ValueError, RecursionError, yaml.YAMLError):
        return False
    return path.name in ("foreign.safetensors", "foreign.pth", "extra.npz")


def _bytes(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    size = len(content)
    at, length = rng.randrange(size + 1), rng.choice((1, 1, 4, 64, 1000))
    how = rng.choice(("flip", "truncate", "insert", "duplicate", "zero", "empty", "noise"))
    made = {
        "flip": lambda: (
            content[:at] + bytes(b ^ (1 << rng.randrange(8)) for b in content[at : at + 1]) + content[at + 1 :]
        ),
        "truncate": lambda: content[:at],
        "insert": lambda: content[:at] + rng.randbytes(length) + content[at:],
        "duplicate": lambda: content[:at] + content[max(0, at - length) : at] + content[at:],
        "zero": lambda: content[:at] + bytes(min(length, size - at)) + content[at + length :],
        "empty": lambda: b"",
        "noise": lambda: rng.randbytes(min(size, 5000)),
    }[how]()
    return f"bytes: {how} {length if how in ('insert', 'duplicate', 'zero') else ''} at {at} of {size}", made


def _places(value: Any, path: str = "") -> list[tuple[Any, Any, str]]:
    """Container, key and path of every value inside of `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = []
    for key, inner in list(items):
        found += [(value, key, f"{path}.{key}"), *_places(inner, f"{path}.{key}")]
    return found


def changed(value: Any, rng: random.Random) -> tuple[str, Any]:
    """Plain data with one odd thing in it."""
    places = _places(value)
    if not places or rng.random() < 0.05:
        odd = rng.choice(ODD)
        return f"all of it is {str(odd)[:20]!r}", odd
    container, key, path = rng.choice(places)
    how = rng.choice(("drop", "odd", "odd", "odd", "key", "deep", "negative"))
    if how == "drop" or (how == "key" and not isinstance(container, dict)):
        del container[key]
        return f"without {path}", value
    if how == "key":
        container[str(key) + "x"] = container.pop(key)
        return f"{path} renamed", value
    if how == "deep":
        container[key] = "DEEP"
        return f"{path} nested deeply", value
    number = isinstance(container[key], int | float)
    container[key] = -container[key] if how == "negative" and number else rng.choice(ODD)
    return f"{path} is {str(container[key])[:20]!r}", value


def _json(path: Path, rng: random.Random) -> tuple[str, bool]:
    what, value = changed(json.loads(path.read_text()), rng)
    if path.name == "checkpoint.json" and isinstance(value, dict):
        value = sealed(value)
    path.write_text(_text(value))
    return what, True


def _lines(path: Path, rng: random.Random) -> tuple[str, bool]:
    lines = path.read_text().splitlines()
    number = rng.randrange(len(lines))
    what, value = changed(json.loads(lines[number]), rng)
    lines[number] = _text(value)
    path.write_text("\n".join(lines) + "\n")
    return f"line {number + 1}: {what}", isinstance(value, dict)


def _yaml(path: Path, rng: random.Random) -> tuple[str, bool]:
    what, value = changed(yaml.safe_load(path.read_text()), rng)
    path.write_text(yaml.safe_dump(value, sort_keys=False).replace("DEEP", "[" * DEEP + "]" * DEEP))
    return what, True


def _text(value: Any) -> str:
    return json.dumps(value).replace('"DEEP"', "[" * DEEP + "]" * DEEP)


def sealed(entries: dict[str, Any]) -> dict[str, Any]:
    """The entries of `checkpoint.json` with the digest of all others, if they have one."""
    if "digest" not in entries:
        return entries
    rest = {name: value for name, value in entries.items() if name != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return rest | {"digest": hashlib.sha256(text.encode()).hexdigest()}


def resign(folder: Path) -> None:
    """Give `checkpoint.json` the digests of what lies beside it, as an author of a checkpoint can."""
    path = folder / "checkpoint.json"
    if path.exists():
        meta = json.loads(path.read_text())
        for name in meta["sha256"]:
            meta["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        path.write_text(json.dumps(sealed(meta), indent=2))


def _tensors(path: Path, rng: random.Random) -> tuple[str, bool]:
    """Odd tensors or meta data under a right signature; where there is none, in a file like any other."""
    with safe_open(path, framework="pt") as file:
        header = (file.metadata() or {}).get("hydraprune")
    tensors = load_file(path)
    if header is not None and rng.random() < 0.4:
        meta = json.loads(json.loads(header)[1])
        what, meta = changed(meta, rng)
        save_tensors(path, tensors, meta if isinstance(meta, dict) else {"meta": meta})
    else:
        what, tensors = _odd(tensors, rng)
        if header is None:
            save_file(tensors, path)
            return what, path.name == "foreign.safetensors"
        save_tensors(path, tensors, json.loads(json.loads(header)[1]))
    resign(path.parent)
    return f"signed: {what}", True


def _odd(tensors: dict[str, Tensor], rng: random.Random) -> tuple[str, dict[str, Tensor]]:
    name = rng.choice(sorted(tensors)) if tensors else "none"
    value = tensors.get(name, torch.zeros(2, 3))
    ways: dict[str, Callable[[], Tensor]] = {
        "zero": lambda: torch.zeros_like(value),
        "flat": lambda: value.flatten(),
        "one more": lambda: torch.cat([value[:1], value]) if value.dim() and len(value) else value[None],
        "cut": lambda: value[: len(value) // 2].clone() if value.dim() else value[None],
        "empty": lambda: value.new_empty(0),
        "float64": lambda: value.double(),
        "int64": lambda: value.to(torch.int64),
        "bool": lambda: value.bool(),
        "not finite": lambda: torch.full_like(value.float(), rng.choice((torch.nan, torch.inf))),
        "huge": lambda: torch.full_like(value, 1e38 if value.is_floating_point() else 100),
        "negative": lambda: -value.to(torch.float32),
    }
    how = rng.choice(["drop", "rename", "add", *ways])
    rest = {key: tensor for key, tensor in tensors.items() if key != name}
    made = {"drop": dict, "rename": lambda: {f"{name}.x": value}, "add": lambda: {name: value, "../x": torch.zeros(3)}}
    return f"{name} {how}", rest | (made[how]() if how in made else {name: ways[how]().contiguous()})


def _npz(path: Path, rng: random.Random) -> tuple[str, bool]:
    with np.load(path) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    if rng.random() < 0.1:
        np.savez(path, image=np.array([{"an": "object"}], dtype=object), label=arrays["label"].numpy())
        return "image holds objects", False
    what, odd = _odd(arrays, rng)
    np.savez(path, **{name.replace("/", "_"): value.numpy() for name, value in odd.items()})
    return what, True


def _pth(path: Path, rng: random.Random) -> tuple[str, bool]:
    what, odd = _odd(torch.load(path, weights_only=True), rng)
    stream = io.BytesIO()
    torch.save(rng.choice([odd, {"state_dict": odd}, [odd], {"model": {"x": odd}}, odd | {"x": Path("x")}]), stream)
    path.write_bytes(stream.getvalue())
    return what, True


_STRUCTURED: dict[str, Callable[[Path, random.Random], tuple[str, bool]]] = {
    ".json": _json, ".jsonl": _lines, ".yaml": _yaml, ".safetensors": _tensors, ".npz": _npz, ".pth": _pth,
}  # fmt: skip
