"""Damaged files, each given to those that read it: the right answer, or one error of one line that names the file."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save_file

import hydraprune as hp
from trials import folders, kills
from trials.damage import damage
from trials.processes import Ended, Fork, command, started, warm
from trials.trial import Trial

SECONDS, MEMORY, SPARE = 20.0, 2 << 30, 300
"""What a reader may take: seconds, bytes of address space, and MiB beyond what the undamaged file takes."""
STAGE = "run/finetune"
RUN = ("run", "trades.yaml", "--out")
SLOW = ("study", f"{STAGE}/claim")
"""Files that take long to make."""


def api(call: Callable[[], Any]) -> Callable[[], Any]:
    """A call of the Python API that ends like a command."""

    def ended() -> Any:
        try:
            return call()
        except hp.HydrapruneError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    return ended


def digest(value: Any) -> str:
    """Of tensors, networks, mappings, and what prints them."""
    if isinstance(value, torch.nn.Module):
        value = value.state_dict()
    if isinstance(value, dict):
        return str({name: digest(inner) for name, inner in value.items()})
    if isinstance(value, torch.Tensor):
        value = (value.dtype, value.shape, hashlib.sha256(value.detach().contiguous().numpy().tobytes()).hexdigest())
    return str(value)


def _load() -> str:
    model, meta = hp.load(STAGE)
    return digest({"model": model, "masks": hp.MaskView(model).masks(), "net": meta.net, "kept": meta.kept})


def _split(**settings: Any) -> str:
    data = hp.load_data(**settings)
    return digest(
        {
            name: next(iter(part.batches(64, seed=0).epoch(0))).x
            for name, part in vars(data).items()
            if name in ("train", "test")
        }
    )


def _images() -> str:
    os.environ["HYDRAPRUNE_CACHE"] = str(Path("data/cache").resolve())
    return _split(kind="cifar10", path="data")


READERS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "hp.load": (api(_load), ()),
    "hp.load_data, extra": (api(lambda: _split(kind="digits", samples=100, extra={"path": "data/extra.npz"})), ()),
    "hp.load_data, cache": (api(_images), ()),
    "hp.Net, pth": (api(lambda: digest(hp.Net(kind="cnn_digits", weights="data/foreign.pth").build(10, 1, 8))), ()),
    "hp.Net, safetensors": (
        api(lambda: digest(hp.Net(kind="cnn_digits", weights="data/foreign.safetensors").build(10, 1, 8))), ()
    ),
    "evaluate": (command(*kills.LATER["evaluate"]), (f"{STAGE}/evaluation.json", f"{STAGE}/verdicts.safetensors")),
    "check": (command("check", STAGE, "--samples", 20), (f"{STAGE}/checks.json",)),
    "verify": (command(*kills.LATER["verify"]), (f"{STAGE}/verification.json",)),
    "certify": (command(*kills.LATER["certify"]), (f"{STAGE}/certification.json",)),
    "report": (command("report", "run", "--out", "page.html"), ("page.html",)),
    "report, study": (command("report", "study", "--out", "page.html"), ("page.html",)),
    "table": (command("table", "run"), ()),
    "table, study": (command("table", "study"), ()),
    "run, finished": (command(*RUN, "run"), ("run/results.json",)),
    "run, killed": (command(*RUN, "killed"), ("killed",)),
    "show": (command("show", "trades.yaml"), ()),
    "study": (command("study", "study.yaml", "--out", "study", "--dry-run"), ()),
}  # fmt: skip
"""Reader -> its call, and the files that hold its answer beside what it prints."""
COMMANDS, PAGES = ("evaluate", "check", "verify", "certify"), ("report", "table")
TARGETS: dict[str, tuple[str, ...]] = {
    "trades.yaml": ("show", "run, finished"),
    "study.yaml": ("study",),
    "run/recipe.yaml": ("run, finished", "report"),
    "run/results.json": ("run, finished", *PAGES),
    "run/metrics.jsonl": ("report",),
    "run/environment.json": ("report",),
    "run/data.json": ("report", "run, finished", "evaluate"),
    f"{STAGE}/checkpoint.json": ("hp.load", "report", *COMMANDS),
    f"{STAGE}/model.safetensors": ("hp.load", "report", *COMMANDS),
    f"{STAGE}/masks.safetensors": ("hp.load", "report", "evaluate"),
    f"{STAGE}/verdicts.safetensors": ("evaluate", "check", "report"),
    f"{STAGE}/examples.safetensors": ("report",),
    f"{STAGE}/evaluation.json": ("evaluate", *PAGES),
    f"{STAGE}/verification.json": PAGES,
    f"{STAGE}/certification.json": PAGES,
    f"{STAGE}/curves.json": ("evaluate", "report"),
    f"{STAGE}/checks.json": ("report",),
    f"{STAGE}/claim.json": ("report",),
    f"{STAGE}/corruptions.json": ("evaluate", "report"),
    f"{STAGE}/verified-*.jsonl": ("verify", "check", "report"),
    f"{STAGE}/certified-*.jsonl": ("certify", "report"),
    "killed/*/*state*.safetensors": ("run, killed",),
    "killed/*/best.safetensors": ("run, killed",),
    "killed/metrics.jsonl": ("run, killed",),
    "killed/recipe.yaml": ("run, killed",),
    "study/*/cell.json": ("study", "table, study", "report, study"),
    "study/*/failure.json": ("study", "report, study"),
    "study/study.yaml": ("study", "table, study"),
    "data/cache/*.safetensors": ("hp.load_data, cache",),
    "data/extra.npz": ("hp.load_data, extra",),
    "data/foreign.pth": ("hp.Net, pth",),
    "data/foreign.safetensors": ("hp.Net, safetensors",),
}
"""Files -> who reads them."""


@dataclass(frozen=True)
class World:
    """What every trial begins with.

    Attributes:
        seed: of the trials.
        scratch: where folders may be made; `source` there holds all files undamaged.
        cases: file, below `source`, and reader.
        answers: reader -> how it ends, and its answer.
    """

    seed: int
    scratch: Path
    cases: list[tuple[str, str]]
    answers: dict[str, tuple[Ended, str]]


def prepare(scratch: Path, seed: int, trials: int) -> World:
    """Every kind of file, whole, and what its readers make of it."""
    shutil.copytree(kills.base(scratch.parent / "base"), scratch / "source")
    source, rng = scratch / "source", random.Random(seed)
    chosen = [(pattern, reader) for pattern, readers in TARGETS.items() for reader in readers]
    rng.shuffle(chosen)
    chosen.sort(key=lambda case: case[0].startswith(SLOW))  # a short measurement does without
    wanted = " ".join(pattern for pattern, _ in chosen[:trials])
    further = ("evaluate", STAGE, "--attacks", "fmn", "--corruptions", "true", "--samples", 20)
    commands = {"claim": ("benchmark", STAGE, "--samples", 4), "checks": ("check", STAGE, "--samples", 20)}
    for name, later in {**kills.LATER, "corruptions": further, **commands}.items():
        if name in kills.LATER or name in wanted:
            ended = Fork(command(*later), source).end(300)
            if ended.code == 2:
                raise SystemExit(f"{name} fails without any damage: {ended.brief()}")
    for name, make in {"killed/": _killed, "study/": _study, "data/": _data}.items():
        if name in wanted:
            make(source)
    cases = [
        (path.relative_to(source).as_posix(), reader)
        for pattern, reader in chosen[:trials]
        for path in sorted(source.glob(pattern))
    ]
    rng.shuffle(cases)
    used = dict.fromkeys(reader for _, reader in cases[:trials])
    world = World(seed, scratch, cases, {})
    warm(_copy(world, "warm"), *(READERS[reader][0] for reader in used))
    for reader in used:
        folder = _copy(world, "reference")
        ended = Fork(READERS[reader][0], folder, limit=MEMORY).end(60)
        if ended.code not in (0, 1) or (ended.code and reader != "check"):
            raise SystemExit(f"{reader} fails without any damage: {ended.brief()}")
        world.answers[reader] = ended, _answer(reader, ended, folder)
    return world


def trial(world: World, number: int) -> Trial:
    """One damaged file, and one that reads it."""
    rng = random.Random(f"mutations/{world.seed}/{number}")
    name, reader = world.cases[number % len(world.cases)]
    folder = _copy(world, str(number))
    what, believable = damage(folder / name, rng)
    ended = Fork(READERS[reader][0], folder, limit=MEMORY).end(SECONDS)
    outcome, got = _judge(world, reader, name, ended, folder, believable)
    if got is None:
        shutil.rmtree(folder)
    kind = Path(name).name.partition("-")[0].partition(",")[0]
    return Trial(kind, outcome, f"{name}: {what}; then {reader}", got)


def _judge(
    world: World, reader: str, name: str, ended: Ended, folder: Path, believable: bool
) -> tuple[str, str | None]:
    """In two words what came out, and what is wrong with it."""
    first, answer = world.answers[reader]
    file = folder / name
    if ended.hung or ended.code < 0:
        return "crash or hang", ended.brief()
    size = file.stat().st_size / 2**20 if file.exists() else 0
    if ended.peak > first.peak + SPARE + 8 * size:
        return "memory", f"{ended.peak:.0f} MiB instead of {first.peak:.0f}; {ended.brief()}"
    if ended.complaint is not None:
        # Settings are named by their path; the files of a checkpoint disagree with each other as a folder.
        mine = (file.name, *((file.parent.name,) if (file.parent / "checkpoint.json").exists() else ()))
        named = any(part in ended.complaint for part in mine) or (file.suffix == ".yaml" and file.parent == folder)
        return ("error", None) if named else ("unnamed", ended.complaint)
    if reader == "check" and (first.code, ended.code) == (0, 1) and believable and "expected: " in ended.out:
        return "valid, other content", None  # a check that fails is an answer
    if ended.code != first.code:
        return "raw error", ended.brief()
    found = _answer(reader, ended, folder)
    if found == answer:
        return "right answer", None
    page = folder / "page.html"
    told, before = ended.out + (page.read_text() if page.exists() else ""), first.out
    if page.exists():
        before += answer
    if told.count(file.name) > before.count(file.name):
        return "left out, and told", None
    return (
        ("valid, other content", None) if believable else ("silently wrong", "another answer than from the whole file")
    )


def _answer(reader: str, ended: Ended, folder: Path) -> str:
    """What a reader makes of its files, apart from wall times."""
    if reader.startswith("hp."):
        return str(ended.value)
    files = READERS[reader][1]
    if files == ("page.html",):
        return (folder / files[0]).read_text() if (folder / files[0]).exists() else ""
    if files:
        return json.dumps(folders.contents(folder, files))
    return ended.out


def _copy(world: World, name: str) -> Path:
    target = world.scratch / f"damaged-{name}"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(world.scratch / "source", target)
    return target


def _killed(source: Path) -> None:
    """A run that was killed in its last training stage, with a saved state and a best network."""
    while not [*source.glob("killed/finetune/*state*")]:
        shutil.rmtree(source / "killed", ignore_errors=True)
        process = Fork(command(*RUN, "killed"), source)
        while process.running(0.002) and not [*source.glob("killed/finetune/*state*")]:
            pass
        process.kill()
        process.end()
    for leftover in source.glob("killed/**/.*.safetensors*"):
        leftover.unlink()


def _study(source: Path) -> None:
    """A study of two cells that are done, one of which had failed."""
    values = folders.study()
    values["grid"]["sparsity"] = {"stages.prune.budget.sparsity": [0.9]}
    (source / "study.yaml").write_text(json.dumps(values))  # YAML, too
    ended = started(source, "study", "study.yaml", "--out", "study", "--jobs", 2).end(300)
    if ended.code:
        raise SystemExit(f"the study fails without any damage: {ended.brief()}")
    cell = next(iter(sorted(source.glob("study/*/cell.json"))))
    failure = {"error": "no space", "trace": "", "time": 0.0, "labels": json.loads(cell.read_text())["labels"]}
    (cell.parent / "failure.json").write_text(json.dumps(failure))


def _data(source: Path) -> None:
    """Images in tables, with their cache; further images; weights of others."""
    folder = source / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", 60), ("test", 20)):
        rows = []
        for _ in range(count):
            stream = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(stream, "PNG")
            rows.append({"bytes": stream.getvalue(), "path": ""})
        pq.write_table(pa.table({"img": rows, "label": [k % 10 for k in range(count)]}), folder / f"{split}.parquet")
    Fork(_images, source).end(60)
    np.savez(folder / "extra.npz", image=rng.integers(0, 256, (30, 8, 8, 1), np.uint8), label=np.arange(30) % 10)
    state = hp.Net(kind="cnn_digits").build(10, 1, 8).state_dict()
    torch.save(state, folder / "foreign.pth")
    save_file(state, folder / "foreign.safetensors")
