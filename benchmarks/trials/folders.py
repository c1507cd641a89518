"""The small experiments that are disturbed, and what a folder holds apart from wall times."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

TESTS = Path(__file__).parent.parent.parent / "tests"
TIMES = {"seconds", "time", "digest"}
"""What no two runs have in common: wall times, and the digest of a file that holds one."""


def recipes() -> dict[str, dict[str, Any]]:
    """Name -> settings: the tests' smallest recipe, with several objectives."""
    spec = importlib.util.spec_from_file_location("tiny", TESTS / "recipes" / "tiny.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tiny = module.TINY
    small = {"samples": 6, "batch_size": 3, "of": ["pretrain", "finetune"]}
    smoothing = {"sigma": 0.25, "n0": 10, "n": 60, "alpha": 0.01}
    bounds = {"kind": "certify", "bounds": ["ibp", "best"], **small}
    noise = {"kind": "certify", "smoothing": smoothing, **small}
    last = [{**stage, "select": "last"} if stage["kind"] == "fit" else stage for stage in tiny["stages"]]
    clean = [{**stage, "validation": {"samples": 10, "steps": 0}} for stage in tiny["stages"][:3]]
    certified = {**tiny, "threat": {"norm": "linf", "eps": 0.02}, "stages": [*tiny["stages"][:3], bounds]}
    return {
        "trades": {**tiny, "name": "trades"},
        "pgd": {**tiny, "name": "pgd", "objective": {"kind": "pgd", "steps": 2}, "stages": last},
        "ibp": {**certified, "name": "ibp", "objective": "ibp"},
        "crown-ibp": {**certified, "name": "crown-ibp", "objective": "crown-ibp"},
        "smoothing": {
            **tiny, "name": "smoothing", "objective": {"kind": "stability", "beta": 6, "sigma": 0.25},
            "threat": {"norm": "l2", "eps": 0.25}, "stages": [*clean, noise],
        },
    }  # fmt: skip


def study() -> dict[str, Any]:
    """Four cells over one pre-training."""
    methods = {"hydra": {"stages.prune.pruner": "hydra"}, "magnitude": {"stages.prune.pruner": "magnitude"}}
    methods["magnitude"]["stages.prune.epochs"] = 0
    recipe = recipes()["trades"]
    return {
        "name": "small",
        "recipe": recipe,
        "grid": {"method": methods, "sparsity": {"stages.prune.budget.sparsity": [0.5, 0.9]}},
    }


def write(folder: Path) -> None:
    """The recipes and the study as YAML files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in {**recipes(), "study": study()}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values, sort_keys=False))


def contents(folder: Path, below: tuple[str, ...] = ("",)) -> dict[str, str]:
    """File -> digest of what it holds apart from wall times; of hidden files, only that they are there.

    Event files are left out: each start of a stage has one of its own. `below` are names, or how they begin.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and "tensorboard/" not in name and name.startswith(below):
            hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
            found[name] = "" if hidden else hashlib.sha256(_content(path)).hexdigest()
    return found


def difference(found: Mapping[str, str], wanted: Mapping[str, str]) -> str | None:
    """What is different, missing or left over; None if nothing is."""
    groups = {
        "different": [name for name in wanted if name in found and found[name] != wanted[name]],
        "missing": [name for name in wanted if name not in found],
        "left over": [name for name in found if name not in wanted],
    }
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in groups.items() if names) or None


def _content(path: Path) -> bytes:
    try:
        return _read(path)
    except (ValueError, TypeError, KeyError, SafetensorError):  # nothing to be read: as it lies
        return path.read_bytes()


def _read(path: Path) -> bytes:
    if path.suffix == ".json":
        return _plain(timeless(json.loads(path.read_text())))
    if path.suffix == ".jsonl":
        return _plain([timeless(json.loads(line)) for line in path.read_text().splitlines()])
    if path.suffix != ".safetensors":
        return path.read_bytes()
    with safe_open(path, framework="np") as file:
        (header,) = (file.metadata() or {"": "[0, 0]"}).values()
        parts = [_plain(timeless(json.loads(json.loads(header)[1])))]
        for name in sorted(file.keys()):
            value = file.get_tensor(name)
            parts += [f"{name} {value.dtype} {value.shape}".encode(), value.tobytes()]
    return b"\0".join(parts)


def timeless(value: Any) -> Any:
    """JSON without wall times."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in TIMES}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def _plain(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
