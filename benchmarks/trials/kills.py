"""Commands that are killed, several times in a row, and then left to finish: is what they leave as if undisturbed?"""

from __future__ import annotations

import random
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from trials import folders
from trials.processes import TRACE, Ended, Fork, Process, all_ended, command, started, warm
from trials.trial import Trial, held

GRACE = 10.0
"""Seconds in which the processes of a killed study must end."""
STAGE = "run/finetune"
RUNS = {
    "run trades": ("run", "trades.yaml", "--out", "run"),
    "run pgd": ("run", "pgd.yaml", "--out", "run"),
    "run ibp": ("run", "ibp.yaml", "--out", "run"),
    "run crown-ibp": ("run", "crown-ibp.yaml", "--out", "run"),
    "run smoothing": ("run", "smoothing.yaml", "--out", "run"),
}
LATER = {
    "evaluate": ("evaluate", STAGE, "--attacks", "fgsm,fmn", "--samples", 60, "--set", "data.samples=100"),
    "verify": ("verify", STAGE, "--bounds", "ibp,crown", "--eps", "0.02", "--samples", 40),
    "certify": ("certify", STAGE, "--sigma", "0.25", "--n0", 10, "--n", 100, "--samples", 30),
    "report": ("report", "run", "--out", "run/report.html"),
}
STUDY = ("study", "study.yaml", "--out", "run", "--jobs", 2)
ALONE = "study, parent alone"
OPERATIONS = {"run": 60, "study": 40, "evaluate": 8, "verify": 10, "certify": 10, "report": 2}
"""Command -> about as many file operations does it make."""
KINDS = (*RUNS, *LATER, "run trades", "run trades, new processes", *RUNS, "study", *LATER, ALONE)


@dataclass(frozen=True)
class World:
    """What every trial begins with, and what it must come to.

    Attributes:
        seed: of the trials.
        scratch: where folders may be made.
        wanted: kind -> what an undisturbed command leaves.
        seconds: kind -> how long that takes.
    """

    seed: int
    scratch: Path
    wanted: dict[str, dict[str, str]]
    seconds: dict[str, float]


def prepare(scratch: Path, seed: int, trials: int) -> World:
    """Undisturbed commands of the kinds that come up."""
    world = World(seed, scratch, {}, {})
    shutil.copytree(base(scratch.parent / "base"), scratch / "source")
    for kind in dict.fromkeys(KINDS[:trials]):
        undisturbed(world, kind, fresh(world, kind, "reference"))
    return world


def base(folder: Path) -> Path:
    """`folder` with the recipes, and a finished run of the first: made once for all parts."""
    if not folder.exists():
        folders.write(folder)
        run = command(*RUNS["run trades"])
        warm(folder, run)
        shutil.rmtree(folder / "run")
        ended = Fork(run, folder).end()
        if ended.code:
            raise SystemExit(f"a run fails without any fault: {ended.brief()}")
    return folder


def undisturbed(world: World, kind: str, folder: Path) -> None:
    """Run the command of a kind to its end, and remember what it leaves."""
    began = time.monotonic()
    ended = begin(kind, folder).end(300)
    if ended.code:
        raise SystemExit(f"{kind} fails without any fault: {ended.brief()}")
    world.seconds[kind] = time.monotonic() - began
    world.wanted[kind] = folders.contents(folder / "run")


def fresh(world: World, kind: str, name: str) -> Path:
    """A folder with the recipes, and with a finished run if the command is about one."""
    folder = world.scratch / f"{kind.replace(' ', '-')}-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    keep = None if kind in LATER else shutil.ignore_patterns("run")
    shutil.copytree(world.scratch / "source", folder, ignore=keep)
    return folder


def begin(kind: str, folder: Path, point: tuple[int, bool] | None = None) -> Process:
    """Start the command of a kind."""
    if kind in RUNS or kind in LATER:
        return Fork(command(*(RUNS | LATER)[kind], point=point), folder)
    return started(folder, *(STUDY if kind.startswith("study") else RUNS["run trades"]), point=point)


def trial(world: World, number: int) -> Trial:
    """One chain of kills."""
    rng = random.Random(f"kills/{world.seed}/{number}")
    kind = KINDS[number % len(KINDS)]
    did: list[str] = []
    sessions: list[int] = []
    for _ in range(4):  # a command may end before it is killed
        folder = fresh(world, kind, str(number))
        got = _chain(world, kind, folder, rng, did, sessions)
        if did or got is not None:
            break
    left = all_ended(folder, *sessions, seconds=GRACE)
    got = got or (f"{len(left)} processes are alive {GRACE:g} s later" if left else None)
    got = got or folders.difference(folders.contents(folder / "run"), world.wanted[kind])
    if got is None:
        shutil.rmtree(folder)
    return Trial(kind, "as undisturbed" if got is None else "failure", "; ".join(did), got, events=len(did))


def _chain(
    world: World, kind: str, folder: Path, rng: random.Random, did: list[str], sessions: list[int]
) -> str | None:
    """Kill up to four times (a study at most twice), then let it finish; what went wrong."""
    slow = kind.startswith("study")
    for _ in range(rng.randint(1, 2 if slow else 4)):
        number = rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
        delay = rng.uniform(0.0, 1.0 if not did else 0.6) * world.seconds[kind]
        point = (
            (rng.randint(1, OPERATIONS[kind.partition(" ")[0].strip(",")]), rng.random() < 0.5)
            if rng.random() < 0.4
            else None
        )
        process = begin(kind, folder, point)
        sessions.append(process.pid)
        if point is None and process.running(delay):
            process.kill(number, group=kind != ALONE)
            did.append(f"{signal.Signals(number).name} after {delay:.2f} s")
        ended = process.end(60)
        if kind == ALONE and did and rng.random() < 0.5 and (left := all_ended(folder, process.pid, seconds=GRACE)):
            return f"{len(left)} processes live on {GRACE:g} s after their parent; {did[-1]}"
        if ended.hung:
            return f"it does not end after {did[-1] if did else point}"
        if point is not None and ended.code == -signal.SIGKILL:
            did.append(f"SIGKILL {'after' if point[1] else 'before'} file operation {point[0]}")
        elif point is not None and slow and ended.code == 1:
            did.append(f"SIGKILL of a worker at file operation {point[0]}")
        elif ended.code == 0:
            break
        elif wrong := _wrong(ended):
            return wrong
    for _ in range(12):
        process = begin(kind, folder)
        sessions.append(process.pid)
        ended = process.end(120)
        if ended.code == 0:
            return None
        if not held(ended):
            break
        time.sleep(1.0)
    return f"the same command again: {ended.brief()}"


def _wrong(ended: Ended) -> str | None:
    """Why a process that was killed, or was kept out by another, should not have ended so."""
    if TRACE in ended.err:
        return f"traceback: {ended.brief()}"
    return None if ended.code < 0 or ended.code >= 128 or held(ended) else f"before the kill: {ended.brief()}"
