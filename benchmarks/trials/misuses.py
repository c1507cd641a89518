"""Misuse of the Python API and of the command line: the right result or one clear error, and the model as it was."""

from __future__ import annotations

import random
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hydraprune as hp
from trials import kills
from trials.mutations import SPARE, digest
from trials.processes import TRACE, Ended, Fork, command, warm
from trials.trial import Trial

SECONDS = 60.0
JUNK = "None | -1 | 2.5 | float('nan') | 'x' | [] | {} | object() | hp.PGDAttack | torch.zeros(0) | True | 10**30 | len"
"""Wrong for nearly every argument."""
CALLS: dict[str, tuple[str, dict[str, str]]] = {
    "evaluate": (
        "verdicts(hp.evaluate(model, batches, threat=threat, attacks=attacks, seed=seed))",
        {"model": "net", "batches": "[batch]", "threat": "threat", "attacks": "[hp.PGDAttack()]", "seed": "0"},
    ),
    "fit": (
        "untimed(hp.fit(model, params, batches, objective, epochs=epochs, optim=optim, threat=threat, seed=seed)), "
        "digest(model)",
        {"model": "net", "params": "view.train('weights')", "batches": "batches", "epochs": "1",
         "objective": "hp.TRADES(steps=1)", "optim": "hp.Optim(lr=0.01)", "threat": "threat", "seed": "0"},
    ),
    "prune": (
        "hp.prune(view, pruner, budget).view.count(), digest(hp.MaskView(net).masks())",
        {"view": "view", "pruner": "hp.Hydra()", "budget": "hp.Uniform(sparsity=0.9)"},
    ),
    "save": ("hp.save(folder, model).kept", {"folder": "'saved'", "model": "net"}),
    "load": ("digest(hp.load(folder, model)[0])", {"folder": "'run/finetune'", "model": "net"}),
    "certify": (
        "digest(dict(enumerate(hp.certify(model, x, sigma=sigma, n0=10, n=50, seed=seed))))",
        {"model": "net", "x": "x[:3]", "sigma": "0.25", "seed": "0"},
    ),
    "verify": (
        "[record.verified for record in hp.verify(model, data, threat, method).records]",
        {"model": "net", "data": "batch", "threat": "threat", "method": "'ibp'"},
    ),
    "logit_bounds": (
        "digest(dict(enumerate(hp.logit_bounds(model, x, threat, method=method))))",
        {"model": "net", "x": "x", "threat": "threat", "method": "'ibp'"},
    ),
    "ThreatModel": ("hp.ThreatModel(norm=norm, eps=eps)", {"norm": "'linf'", "eps": "0.05"}),
    "Net.build": (
        "hp.Net(kind=kind).build(classes, channels, size)",
        {"kind": "'cnn_digits'", "classes": "10", "channels": "1", "size": "8"},
    ),
    "load_data": (
        "len(hp.load_data(kind, samples=samples, validation=validation).train)",
        {"kind": "'digits'", "samples": "100", "validation": "0.1"},
    ),
    "batches": ("len(list(data.train.batches(size, seed=seed).epoch(0)))", {"size": "45", "seed": "0"}),
    "take": ("len(data.test.take(count))", {"count": "20"}),
    "MaskView": ("hp.MaskView(model, exempt).counts()", {"model": "net", "exempt": "[]"}),
    "view.train": ("[name for name, _ in view.train(over)]", {"over": "'weights'"}),
    "run": ("len(hp.run(recipe, out))", {"recipe": "hp.load_recipe('trades.yaml')", "out": "'run'"}),
    "load_recipe": ("hp.load_recipe(name, overrides).name", {"name": "'trades.yaml'", "overrides": "[]"}),
}  # fmt: skip
"""Function -> a call of it, as Python, and its right arguments."""
SPECIAL = {
    "evaluate batches": "loader | batch | (x, y) | [(x, y)] | x | [hp.Batch(x.half(), y)] | "
    "[hp.Batch(x.double(), y)] | [hp.Batch(x.repeat(1, 3, 1, 1), y)] | [hp.Batch(x.repeat(1, 1, 2, 2), y)] | "
    "[hp.Batch((255 * x).byte(), y)] | [hp.Batch(x, y + 10)] | [hp.Batch(x, y.float())] | [hp.Batch(x, y[:3])] | "
    "[hp.Batch(x * float('nan'), y)]",
    "evaluate model": "other.half() | other.to('meta') | Pair() | nn.Flatten() | wide | nn.Linear",
    "evaluate threat": "{'norm': 'linf', 'eps': 0.05} | 0.05",
    "evaluate attacks": "['pgd'] | [hp.PGDAttack] | hp.PGDAttack() | [hp.TRADES()]",
    "fit params": "hp.MaskView(other).train('weights') | net.parameters()",
    "fit batches": "data.train | [(x, y + 10)] | batch | [((255 * x).byte(), y)]",
    "fit objective": "'trades' | hp.TRADES | hp.PGDAttack()",
    "fit optim": "{'lr': 0.01} | torch.optim.SGD(net.parameters(), lr=0.01)",
    "fit threat": "{'norm': 'linf', 'eps': 0.05}",
    "fit model": "Pair() | other",
    "prune view": "net",
    "prune pruner": "'hydra' | hp.Hydra",
    "prune budget": "0.9 | hp.Uniform | hp.Hydra()",
    "save folder": "net",
    "save model": "'saved' | nn.Sequential(nn.LazyLinear(3)) | nn.ReLU()",
    "load folder": "net | 'nowhere' | 'run'",
    "load model": "wide | nn.Linear(3, 3) | Pair()",
    "verify data": "(x, y) | x",
    "ThreatModel norm": "'l3' | 2",
    "ThreatModel eps": "'8/0' | float('inf') | 300",
    "run recipe": "'digits-cnn_digits-trades' | {'name': 'x'}",
    "run out": "'trades.yaml' | 'x' * 300",
    "load_recipe name": "'run'",
    "load_recipe overrides": "['seed'] | ['stages.nope.epochs=1'] | 'seed=1'",
    "view.train over": "'mask'",
}
"""Function and argument -> what users have given."""
VALID = {
    ("evaluate", "attacks", "[]"), ("fit", "epochs", "True"), ("fit", "optim", "None"), ("fit", "threat", "None"),
    ("load", "model", "None"), ("load_data", "samples", "None"), ("save", "folder", "'x'"), ("run", "out", "'x'"),
    ("certify", "sigma", "2.5"), ("batches", "seed", "10**30"), ("prune", "budget", "None"),
    ("take", "count", "10**30"), ("batches", "size", "10**30"), ("fit", "seed", "10**30"),
    ("evaluate", "model", "other.half()"),
}  # fmt: skip
"""What is no misuse, or whose right answer is another than that of the right call."""
LINES = """
run | run trades.yaml | run nope --out x | run trades.yaml --out '' | run trades.yaml --out LONG
run trades.yaml --out /proc/nope | run trades.yaml --out trades.yaml | run pgd.yaml --out run | run run --out x
RUN --set seed | RUN --set seed=-1 | RUN --set a.b.c=1 | RUN --set 'stages=[]' | RUN --set 'seed=['
RUN --set stages.prune.epochs=.nan | RUN --set net.kind=os:nope | RUN --set 'data={kind: images}'
RUN --set data.samples=10000000 | RUN --set net.kind=math:sin | RUN --set seed.x=1 | run trades.yaml --nope
show nope | show run | show STAGE/model.safetensors | show '' | nope | study nope --out x
study trades.yaml --out x | study study.yaml --out run | study study.yaml --out x --jobs 0
study study.yaml --out x --ray nope:1 | table nope | table . | table run --baseline x | table run --where seed=0
report nope | report source | report run --out run | report run --out /proc/x.html | evaluate run | evaluate nope
evaluate STAGE --attacks nope | evaluate STAGE --samples 0 | evaluate STAGE --attacks ''
evaluate STAGE --attacks pgd,pgd | evaluate STAGE --transfer-from nope | evaluate STAGE --corruptions nope
evaluate STAGE --set threat=null | evaluate STAGE --set data.kind=cifar10 --set data.path=nope
verify STAGE --bounds nope | verify STAGE --eps x | verify STAGE --eps -1 | verify STAGE --set threat.norm=l2
certify STAGE | certify STAGE --sigma 0 | certify STAGE --sigma x | certify STAGE --sigma 1 --n 0
certify STAGE --sigma 1 --alpha 2 | certify STAGE --sigma 1 --radii x | certify STAGE --sigma 1 --every 0
check nope | check STAGE --samples x | benchmark nope | prune --net nope --data digits --out x
prune --net cnn_digits --data nope --out x | PRUNE --sparsity 2 | PRUNE --weights nope
prune --net cnn_digits --data images --out x
"""
"""Command lines, none of which is right; what stands for longer words is in `WORDS`."""
WORDS = {
    "LONG": "x" * 300,
    "STAGE": "run/finetune",
    "RUN": "run trades.yaml --out x",
    "PRUNE": "prune --net cnn_digits --data digits --out x",
}


class Pair(nn.Module):
    """A network that returns two things."""

    def __init__(self) -> None:
        super().__init__()
        self.net = hp.Net(kind="cnn_digits").build(10, 1, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.net(x), x


def material() -> dict[str, Any]:
    """What calls are made of; the same for every call."""
    torch.manual_seed(0)
    net, other, wide = (hp.Net(kind="cnn_digits").build(classes, 1, 8).eval() for classes in (10, 10, 3))
    data = hp.load_data("digits", samples=100)
    batch = next(iter(data.test.batches(20, seed=0).epoch(0)))
    return {
        "hp": hp,
        "torch": torch,
        "nn": nn,
        "Pair": Pair,
        "digest": digest,
        "verdicts": verdicts,
        "net": net,
        "other": other,
        "wide": wide,
        "view": hp.MaskView(net),
        "data": data,
        "batch": batch,
        "x": batch.x,
        "y": batch.y,
        "threat": hp.ThreatModel(eps=0.05),
        "untimed": untimed,
        "batches": data.train.batches(45, seed=0, shuffle=True),
        "loader": DataLoader(TensorDataset(*batch), batch_size=20),
    }


def state(net: nn.Module) -> str:
    """All that a call that fails must leave as it was."""
    modules = [(name, type(module).__name__, module.training) for name, module in net.named_modules()]
    return digest(net) + str(modules) + str([parameter.requires_grad for parameter in net.parameters()])


@dataclass(frozen=True)
class World:
    """Where calls are made, and function -> what it returns for the right arguments."""

    scratch: Path
    cases: list[tuple[object, ...]]
    right: Mapping[str, str]
    peak: float


def prepare(scratch: Path, seed: int, trials: int) -> World:
    """A run, all misuses in an order that the seed decides, and what the right calls return."""
    shutil.copytree(kills.base(scratch.parent / "base"), scratch / "source")
    source = scratch / "source"
    calls = [(name, place, junk) for name, (_, right) in CALLS.items() for place in right for junk in JUNK.split(" | ")]
    calls += [(*place.split(), junk) for place, junks in SPECIAL.items() for junk in junks.split(" | ")]
    cases: list[tuple[object, ...]] = [case for case in calls if case not in VALID]
    rng = random.Random(seed)
    rng.shuffle(cases)
    lines = [("hydraprune", *shlex.split(line)) for line in command_lines()]
    rng.shuffle(lines)
    # A third of the trials are command lines, until there are no more.
    mixed = [case for three in zip(cases[::2], cases[1::2], lines, strict=False) for case in three]
    mixed += cases[2 * len(lines) :]
    warm(source, *(_right(name) for name in CALLS))
    right, peak = {}, 0.0
    for name in CALLS:
        ended = Fork(_right(name), _fresh(scratch, source, "right")).end(SECONDS)
        if ended.code:
            raise SystemExit(f"{name} fails with the right arguments: {ended.brief()}")
        right[name], peak = ended.value, max(peak, ended.peak)
    return World(scratch, mixed, right, peak)


def trial(world: World, number: int) -> Trial:
    """One misuse."""
    case = world.cases[number % len(world.cases)]
    folder = _fresh(world.scratch, world.scratch / "source", str(number))
    if case[0] == "hydraprune":
        did = " ".join(map(str, case))[:120]
        ended = Fork(command(*case[1:]), folder, limit=4 << 30).end(SECONDS)
        usage = ended.code == 2 and "Usage:" in ended.err and TRACE not in ended.err
        clear = ended.complaint is not None or usage
        got = None if clear else ("accepted" if ended.code == 0 else ended.brief())
        outcome = "clear error" if clear else "accepted" if ended.code == 0 else "raw error"
        kind = "command line"
    else:
        kind, argument, junk = map(str, case)
        did = f"{kind} with {argument} = {junk}"
        ended = Fork(_call(kind, argument, junk), folder, limit=4 << 30).end(SECONDS)
        outcome, got = _judge(ended, world.right[kind])
    if got is None and ended.peak > world.peak + 4 * SPARE:
        outcome, got = "memory", f"{ended.peak:.0f} MiB"
    shutil.rmtree(folder)
    return Trial(kind, outcome, did, got)


def command_lines() -> list[str]:
    """All of them, in full."""
    lines = [line.strip() for row in LINES.strip().splitlines() for line in row.split(" | ")]
    return [" ".join(WORDS.get(word, word) for word in line.split(" ")) for line in lines]


def _judge(ended: Ended, right: str) -> tuple[str, str | None]:
    if ended.complaint is not None:
        return "clear error", None
    if ended.code:
        return "raw error", ended.brief()
    return ("right result", None) if ended.value == right else ("silent nonsense", f"returned {str(ended.value)[:100]}")


def _right(function: str) -> Callable[[], Any]:
    return _call(function, "", "")


def _call(function: str, argument: str, junk: str) -> Callable[[], Any]:
    """A call with one wrong argument; an error that leaves the network changed is a failure of its own."""

    def call() -> Any:
        names = material()
        made, right = CALLS[function]
        given = {name: eval(junk if name == argument else value, names) for name, value in right.items()}
        before = state(names["net"])
        try:
            return str(eval(made, {**names, **given}))
        except hp.HydrapruneError as error:
            if state(names["net"]) != before:
                raise AssertionError(f"the network has changed, then: {error}") from None
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    return call


def verdicts(found: hp.Evaluation) -> str:
    """Of an evaluation, whatever its attacks are called."""
    return digest({"prediction": found.prediction, **dict(enumerate(found.survived.values()))})


def untimed(history: list[dict[str, Any]]) -> str:
    """Metrics without wall times."""
    return str([{key: value for key, value in line.items() if key != "seconds"} for line in history])


def _fresh(scratch: Path, source: Path, name: str) -> Path:
    target = scratch / f"misuse-{name}"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target
