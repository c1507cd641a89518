"""Checkpoints, recipes, studies and runs of a stranger who means harm: nothing of his runs, nothing outside is read."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

import hydraprune as hp
from hydraprune.core.tensors import save_tensors
from trials import kills
from trials.damage import resign, sealed
from trials.mutations import api, digest
from trials.processes import Ended, Fork, command, warm
from trials.trial import Trial

SECONDS, LIMIT, SPARE = 30.0, 6 << 30, 600
"""What a command may take: seconds, bytes of address space, and MiB beyond what it takes of a harmless folder."""
SECRET, CANARY = "canary-7f3a9d", "canary_module"
"""The text of the files outside, and the module that leaves a file when it is imported."""
NAMED = ("extends a secret", "extends /etc/passwd", "a study of a secret")
"""What the victim gives to a command himself may name another file; it is opened, and nothing of it is shown."""
STAGE = "run/finetune"
SYSTEM = ("/etc/passwd", "/etc/hostname")
WATCHED = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect", "pickle.find_class")


def _meta(folder: Path, **changes: Any) -> None:
    path = folder / STAGE / "checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    resign(folder / STAGE)


def _json(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    path = folder / name
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def _recipe(folder: Path, change: Callable[[dict[str, Any]], Any], name: str = "trades.yaml") -> None:
    path = folder / name
    values = yaml.safe_load(path.read_text())
    change(values)
    path.write_text(yaml.safe_dump(values, sort_keys=False))


def _link(folder: Path, name: str, target: str) -> None:
    path = folder / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def _digests(folder: Path, keys: dict[str, str]) -> None:
    _meta(folder)
    path = folder / STAGE / "checkpoint.json"
    meta = json.loads(path.read_text())
    meta["sha256"] |= keys
    path.write_text(json.dumps(sealed(meta)))


def _masks(folder: Path, shape: list[Any]) -> None:
    path = folder / STAGE / "masks.safetensors"
    tensors = load_file(path)
    save_tensors(path, tensors, {"shapes": dict.fromkeys(tensors, shape)})
    resign(folder / STAGE)


def _header(folder: Path, size: int) -> None:
    path = folder / STAGE / "model.safetensors"
    path.write_bytes(
        size.to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}'
    )
    resign(folder / STAGE)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + k)}: &{chr(98 + k)} [{', '.join(['*' + chr(97 + k)] * 10)}]\n" for k in range(8)
)
TAGGED = "!!python/object/apply:os.system ['touch ../outside/ran']"
DEEP = "[" * 100_000 + "]" * 100_000
OPEN = (("evaluate", STAGE, "--samples", 20), ("report", "run", "--out", "page.html"), "hp.load")
SHOW = (("show", "trades.yaml"), ("run", "trades.yaml", "--out", "new"))
PAGE = (("report", "run", "--out", "page.html"), ("table", "run"))
AGAIN = (("run", "trades.yaml", "--out", "run"), *PAGE)


def corpus() -> Iterator[tuple[str, Callable[[Path], None], tuple[Any, ...]]]:
    """Name, what the stranger does to a folder, and what his victim calls."""
    outside = "../outside"
    calls = {
        "os:system": {"command": f"touch {outside}/ran"},
        "subprocess:check_output": {"args": ["touch", f"{outside}/ran"]},
        "builtins:exec": {"object": f"open('{outside}/ran', 'w')"}, "builtins:open": {"file": f"{outside}/secret.txt"},
        "pathlib:Path.touch": {}, f"{CANARY}:make": {}, f"finetune.{CANARY}:make": {},
        "torch:load": {"f": "x.pth", "weights_only": False},
        "torch.hub:load": {"repo_or_dir": "x", "model": "y", "source": "local"},
        "importlib:import_module": {"name": CANARY},
        "hydraprune.nets.vgg:os.system": {}, "timm:../x": {}, "runpy:run_path": {"path_name": f"{CANARY}.py"},
    }  # fmt: skip
    for kind, options in calls.items():
        net = {"kind": kind, "options": options, "normalize": None, "init": None, "weights": None}
        yield f"net.kind {kind}", lambda f, net=net: _meta(f, net=net), OPEN
        yield (
            f"net.kind {kind} in run/recipe.yaml",
            lambda f, net=net: _recipe(f, lambda v: v.update(net=net), "run/recipe.yaml"),
            AGAIN,
        )
    net = {"kind": "cnn_digits", "options": {}, "normalize": None, "init": None}
    yield "net.weights outside", lambda f: _meta(f, net=net | {"weights": f"{outside}/secret.txt"}), OPEN
    for huge in (10**12, 10**7, -1, 2**63):
        yield f"num_classes {huge}", lambda f, n=huge: _meta(f, num_classes=n), OPEN
        yield f"image_size {huge}", lambda f, n=huge: _meta(f, image_size=n), OPEN
        yield f"in_channels {huge}", lambda f, n=huge: _meta(f, in_channels=n), OPEN
    for width in (10**5, 10**9):
        wide = net | {"kind": "wrn_28_4", "options": {"widen_factor": width}, "weights": None}
        yield f"a network {width} wide", lambda f, wide=wide: _meta(f, net=wide), OPEN
    for name in (f"{outside}/secret.txt", f"../{outside}/secret.txt", "/etc/hostname", "../../trades.yaml"):
        yield f"sha256 of {name}", lambda f, n=name: _digests(f, {n: "0" * 64}), OPEN
    yield "no sha256", lambda f: _meta(f, sha256={}), OPEN
    yield "kept is a lie", lambda f: _meta(f, kept=28, sparsity=0.999), OPEN
    for shape in ([10**9, 10**9], [-1, 8], [16, 1, 3, 3, 10**12], ["x"], [[]]):
        yield f"masks of shape {shape}", lambda f, s=shape: _masks(f, s), OPEN
    for size in (10**18, 2**40, 40):
        yield f"a header of {size} bytes", lambda f, s=size: _header(f, s), OPEN
    for name in (
        "model.safetensors",
        "masks.safetensors",
        "checkpoint.json",
        "verdicts.safetensors",
        "examples.safetensors",
        "curves.json",
        "evaluation.json",
        "checks.json",
    ):
        yield (
            f"{name} is a link outside",
            lambda f, n=name: _link(f, f"{STAGE}/{n}", f"../../{outside}/secret.txt"),
            OPEN,
        )
    for name in ("recipe.yaml", "results.json", "metrics.jsonl", "environment.json", "failure.json", "data.json"):
        yield f"{name} is a link outside", lambda f, n=name: _link(f, f"run/{n}", f"../{outside}/secret.txt"), AGAIN
    yield "the stage is a link outside", lambda f: _link(f, "run/prune", f"../{outside}"), PAGE
    for stage in (f"../{outside}/run", "../../outside/run", "/etc", f"../{outside}", "..", "finetune/../../.."):
        yield (
            f"results of stage {stage}",
            lambda f, s=stage: _json(f, "run/results.json", lambda v: [r | {"stage": s} for r in v]),
            AGAIN,
        )
        yield (
            f"metrics of stage {stage}",
            lambda f, s=stage: (f / "run/metrics.jsonl").write_text(
                json.dumps({"stage": s, "epoch": 1, "loss": 1.0}) + "\n"
            ),
            AGAIN,
        )
    for script in (
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        '"><script>alert(1)</script>',
        "[red]x[/red]",
        "\x1b[31mx",
        "</script><script>alert(1)</script>",
    ):
        yield (
            f"a name {script!r}",
            lambda f, s=script: _json(
                f, "run/results.json", lambda v: [r | {"pruner": s, "robust_accuracy": {s: 0.5}} for r in v]
            ),
            PAGE,
        )
        yield (
            f"a recipe named {script!r}",
            lambda f, s=script: _recipe(f, lambda v: v.update(name=s, about=s), "run/recipe.yaml"),
            PAGE,
        )
    for name, change in {
        "extends a secret": {"extends": f"{outside}/secret.txt"}, "extends /etc/passwd": {"extends": "/etc/passwd"},
        "extends itself": {"extends": "trades.yaml"},
        "stage outside": {"stages": [{"kind": "fit", "name": "../../x", "over": "weights", "epochs": 1}]},
    }.items():  # fmt: skip
        yield name, lambda f, c=change: _recipe(f, lambda v: v.update(c)), SHOW
        yield f"run/recipe.yaml {name}", lambda f, c=change: _recipe(f, lambda v: v.update(c), "run/recipe.yaml"), AGAIN
    texts = {
        "an alias bomb": BOMB, "deep nesting": DEEP, "a tag": TAGGED, "bytes": "\udcff\udcfe",
        "endless digits": "seed: " + "9" * 100_000, "a recursive alias": "&a [*a]",
        "a merge bomb": "a: &a {x: 1}\n" + "<<: [" + "*a, " * 10**5 + "*a]",
    }  # fmt: skip
    for name, text in texts.items():
        for file, victims in (
            ("trades.yaml", SHOW),
            ("run/recipe.yaml", AGAIN),
            ("study.yaml", (("study", "study.yaml", "--out", "s", "--dry-run"),)),
        ):
            yield (
                f"{name} in {file}",
                lambda f, n=file, t=text: (f / n).write_bytes(t.encode(errors="surrogateescape")),
                victims,
            )
    for file, victims in {
        f"{STAGE}/checkpoint.json": OPEN,
        "run/results.json": AGAIN,
        "run/environment.json": PAGE,
        f"{STAGE}/checks.json": PAGE,
    }.items():
        yield f"deep nesting in {file}", lambda f, n=file: (f / n).write_text(DEEP), victims
        yield f"endless digits in {file}", lambda f, n=file: (f / n).write_text("9" * 10**6), victims
        yield f"bytes in {file}", lambda f, n=file: (f / n).write_bytes(b"\xff\xfe{"), victims
    grid = {
        "a": {"seed": list(range(2000))},
        "b": {"data.split_seed": list(range(2000))},
        "c": {"data.samples": list(range(50, 2000))},
    }
    study = (("study", "study.yaml", "--out", "s", "--dry-run"),)
    yield "a study of 8 billion cells", lambda f: _recipe(f, lambda v: v.update(grid=grid), "study.yaml"), study
    yield (
        "a study of a secret",
        lambda f: _recipe(f, lambda v: v.update(recipe=f"{outside}/secret.txt"), "study.yaml"),
        study,
    )
    yield "a study named ../x", lambda f: _recipe(f, lambda v: v.update(name="../x"), "study.yaml"), study
    yield "a cell named ..", lambda f: _recipe(f, lambda v: v.update(grid={"..": {"seed": [1]}}), "study.yaml"), study


@dataclass(frozen=True)
class World:
    """Where a stranger's folders lie beside files that he wants, and what a harmless folder takes, in MiB."""

    scratch: Path
    cases: list[tuple[str, Callable[[Path], None], Any]]
    peak: float


def prepare(scratch: Path, seed: int, trials: int) -> World:
    """A run, and each hostile thing with each of its victims, in an order that the seed decides."""
    shutil.copytree(kills.base(scratch.parent / "base"), scratch / "source")
    cases = [(name, tamper, victim) for name, tamper, victims in corpus() for victim in victims]
    random.Random(seed).shuffle(cases)
    victims = [
        ("evaluate", STAGE, "--samples", 20),
        ("report", "run", "--out", "page.html"),
        ("table", "run"),
        "hp.load",
    ]
    folder = _fresh(scratch, "harmless")
    warm(folder, *map(_victim, victims))
    ended = [Fork(_victim(victim), folder).end(SECONDS) for victim in victims]
    if any(one.code for one in ended):
        raise SystemExit(f"a harmless folder fails: {[one.brief() for one in ended]}")
    return World(scratch, cases, max(one.peak for one in ended))


def trial(world: World, number: int) -> Trial:
    """One hostile thing, and one call of its victim."""
    name, tamper, victim = world.cases[number % len(world.cases)]
    folder = _fresh(world.scratch, str(number))
    tamper(folder)
    before = {path for path in folder.parent.rglob("*") if path.is_file() or path.is_symlink()}
    outside = folder.parent / ("nowhere" if name in NAMED else "outside")
    ended = Fork(_watched(_victim(victim), outside), folder, limit=LIMIT).end(SECONDS)
    outcome, got = _judge(world, ended, folder, before)
    shutil.rmtree(folder.parent)
    return Trial(str(victim if isinstance(victim, str) else victim[0]), outcome, f"{name}; then {victim}", got)


def _judge(world: World, ended: Ended, folder: Path, before: set[Path]) -> tuple[str, str | None]:
    caught = [line for line in ended.err.splitlines() if line.startswith("CAUGHT")]
    if caught or (folder.parent / "outside" / "ran").exists():
        return "ran or read", caught[0] if caught else "a command of the stranger's ran"
    files = [
        path for path in folder.parent.rglob("*") if path not in before and path.is_file() and not path.is_symlink()
    ]
    if stray := [path for path in files if folder not in path.parents]:
        return "wrote outside", str(stray[0])
    told = [ended.out.encode(), ended.err.encode(), *(path.read_bytes() for path in files)]
    if any(secret in text for text in told for secret in (SECRET.encode(), b"root:x:0")):
        return "told a secret", f"the text of a file outside; {ended.brief()}"
    page = folder / "page.html"
    if page.exists() and any(script in page.read_text() for script in ("<script>alert", "<img src=x")):
        return "script in the page", "not escaped"
    if ended.peak > world.peak + SPARE:
        return "memory", f"{ended.peak:.0f} MiB instead of {world.peak:.0f}; {ended.brief()}"
    if ended.complaint is not None:
        return ("one clear error", None) if len(ended.complaint) < 3000 else ("endless error", ended.complaint[:200])
    return ("nothing happened", None) if ended.code == 0 else ("raw error", ended.brief())


def _victim(victim: Any) -> Callable[[], Any]:
    return api(lambda: digest(hp.load(STAGE)[0])) if victim == "hp.load" else command(*victim)


def _watched(call: Callable[[], Any], outside: Path) -> Callable[[], Any]:
    """`call`, with a line on standard error if it runs something or opens a file outside."""

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        text = str(arguments)
        if event == "open" and isinstance(arguments[0], str | bytes):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            caught = Path(path).is_relative_to(outside) or (path in SYSTEM and outside.exists())
        else:
            caught = event in WATCHED and (CANARY in text or "outside" in text or event == "pickle.find_class")
        if caught:
            os.write(2, f"CAUGHT {event} {text[:200]!r}\n".encode())

    def watched() -> Any:
        torch.set_num_threads(1)
        sys.addaudithook(watch)
        return call()

    return watched


def _fresh(scratch: Path, name: str) -> Path:
    """A folder of its own, with a run in it, a module in many places, and files outside."""
    top = scratch / f"hostile-{name}"
    shutil.rmtree(top, ignore_errors=True)
    folder, outside = top / "inside", top / "outside"
    shutil.copytree(scratch / "source", folder)
    outside.mkdir()
    (outside / "secret.txt").write_text(f"{SECRET}\n")
    shutil.copytree(folder / "run", outside / "run")
    for file in outside.glob("run/**/*.json"):
        file.write_text(file.read_text().replace('"trades"', f'"{SECRET}"'))
    module = f"open({str(outside / 'ran')!r}, 'w')\ndef make(**options): open({str(outside / 'ran')!r}, 'w')\n"
    for place in (folder, folder / "run", folder / STAGE):
        (place / f"{CANARY}.py").write_text(module)
    torch.save({"x": Path("x")}, folder / "x.pth")
    return folder
