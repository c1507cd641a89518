"""Two processes on one folder: one works and the other says who does, and the results are those of one alone."""

from __future__ import annotations

import random
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from trials import folders, kills
from trials.processes import MAIN, TRACE, Ended, Fork, Process, Started, all_ended, command, started
from trials.trial import Trial, held

RUN, LAST, EVALUATE = kills.RUNS["run trades"], kills.RUNS["run pgd"], kills.LATER["evaluate"]
STUDY, TORCHRUN = "two studies", "torchrun, devices: 1"
PAIRS = {
    "two runs, select: best": (RUN, RUN),
    "two runs, select: last": (LAST, LAST),
    "two evaluate": (EVALUATE, EVALUATE),
    "run and evaluate": (RUN, EVALUATE),
    "two runs, new processes": (RUN, RUN),
    STUDY: (kills.STUDY, kills.STUDY),
    TORCHRUN: (RUN,),
}
FORKED = tuple(PAIRS)[:4]
KINDS = (*FORKED, *FORKED, STUDY, *FORKED, TORCHRUN, *FORKED[:2], "two runs, new processes", *FORKED[:2])


@dataclass(frozen=True)
class World:
    """`kills.World`, and kind -> what its commands leave, one after the other."""

    alone: kills.World
    wanted: dict[str, dict[str, str]]


def prepare(scratch: Path, seed: int, trials: int) -> World:
    """The commands of the kinds that come up, one after the other."""
    alone = kills.prepare(scratch, seed, 0)
    world = World(alone, {})
    for kind in dict.fromkeys(KINDS[:trials]):
        folder = _fresh(world, kind, "reference")
        for arguments in _after(kind):
            began = time.monotonic()
            ended = (started(folder, *arguments) if kind == STUDY else Fork(command(*arguments), folder)).end(300)
            if ended.code:
                raise SystemExit(f"{kind} fails alone: {ended.brief()}")
            alone.seconds.setdefault(kind, time.monotonic() - began)
        world.wanted[kind] = folders.contents(folder / "run")
    return world


def trial(world: World, number: int) -> Trial:
    """One pair."""
    rng = random.Random(f"pairs/{world.alone.seed}/{number}")
    kind = KINDS[number % len(KINDS)]
    folder = _fresh(world, kind, str(number))
    gap = 0.0 if rng.random() < 0.4 else rng.uniform(0, world.alone.seconds[kind])
    did = f"the second {gap:.2f} s after the first"
    if kind == TORCHRUN:
        did = "two processes by torchrun"
        pair: list[Process] = [_torchrun(folder, *RUN)]
    else:
        pair = []
        for arguments in PAIRS[kind]:
            pair.append(Fork(command(*arguments), folder) if kind in FORKED else started(folder, *arguments))
            if len(pair) == 1:
                pair[0].running(gap)
    got = _judge(kind, [process.end(300) for process in pair])
    for arguments in () if got else _after(kind):
        again = (started(folder, *arguments) if kind == STUDY else Fork(command(*arguments), folder)).end(120)
        got = got or (f"the same command again: {again.brief()}" if again.code else None)
    left = all_ended(folder, *(process.pid for process in pair), seconds=kills.GRACE)
    got = got or (f"{len(left)} processes are alive" if left else None)
    got = got or folders.difference(folders.contents(folder / "run"), world.wanted[kind])
    if got is None:
        shutil.rmtree(folder)
    return Trial(kind, "as one alone" if got is None else "failure", did, got)


def _after(kind: str) -> list[tuple[object, ...]]:
    """What both do in turn: what was kept out comes second, and what is done says so."""
    return [*dict.fromkeys(PAIRS[kind]), PAIRS[kind][0]]


def _judge(kind: str, ended: list[Ended]) -> str | None:
    """What is wrong with how they ended."""
    for one in ended:
        early = "no finished checkpoint" in (one.complaint or "") or "is missing" in (one.complaint or "")
        refused = held(one) or (kind == "run and evaluate" and early)
        if kind == TORCHRUN:
            refused = "error: " in one.err and "hydraprune/cli" not in one.err
        if one.hung or (one.code and not refused):
            return one.brief()
        if kind != TORCHRUN and TRACE in one.err:
            return one.brief()
    worked = any(one.code == 0 for one in ended)
    return None if worked or kind == TORCHRUN else "both were kept out"


def _torchrun(folder: Path, *arguments: object) -> Started:
    (folder / "command.py").write_text(MAIN + "\n")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "command.py"]
    return Started([*launch, *map(str, arguments)], folder)


def _fresh(world: World, kind: str, name: str) -> Path:
    return kills.fresh(world.alone, "evaluate" if kind == "two evaluate" else "run trades", f"pair-{name}")
