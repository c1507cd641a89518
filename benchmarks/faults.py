"""Kills, races, damaged files, misuse and hostile input: does the project do as it should, each time?

    python benchmarks/faults.py kills --trials 84 --jobs 2        # also: pairs, mutations, misuses, hostile
    python benchmarks/faults.py all --quick                       # a few trials of each, in a minute
    python benchmarks/faults.py write results/reliability.json   # as Markdown beside it; further files follow it

Trials are numbered, and each is a function of the seed and its number: `--only 17` repeats one. What fails is in the
JSON with what was done and what came out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from hydraprune.runs.meta import versions
from machine import machine
from trials.processes import SOURCE
from trials.trial import Trial

PARTS = {"kills": 84, "pairs": 40, "mutations": 5000, "misuses": 200, "hostile": 120}
"""Part -> trials of a whole measurement."""
QUICK = {"kills": 4, "pairs": 2, "mutations": 40, "misuses": 40, "hostile": 20}
NOUNS = {
    "kills": "kills",
    "pairs": "pairs of processes",
    "mutations": "damaged files",
    "misuses": "misuses",
    "hostile": "hostile inputs",
}
MEANT = {
    "kills": "Commands on the embedded digits are killed (`kill -9`, some by SIGTERM) at random moments and at "
    "chosen file operations, studies by their parent alone or as a whole group, and started again until "
    "they end. As it should be: what they leave equals what an undisturbed one leaves, wall times aside, "
    "and no process or temporary file is left.",
    "pairs": "Two processes are started together on one folder. As it should be: the results are those of one "
    "alone, and a process that is refused says so in one line that names the other, with exit code 2.",
    "mutations": "One file is damaged, its bytes or its structure, some with checksums made anew, and read by a "
    "command or from Python. As it should be: the answer of the whole file; or one sentence that names "
    "the file; or a page or table that leaves it out and says so. Text that is valid and has no checksum, "
    "such as a recipe, counts as other content.",
    "misuses": "Wrong arguments in Python and on the command line. As it should be: one sentence and exit code 2, or "
    "the right result where the intention is plain; after a failure the model is as it was.",
    "hostile": "Checkpoints, recipes, studies and run folders that try to run code, read elsewhere, or take memory. "
    "As it should be: nothing is run, nothing outside is opened (an audit hook sees to that), memory "
    "stays bounded.",
}
"""What a part does, and what counts as right."""
_job: Callable[[int], Trial]


def conduct(part: str, numbers: Sequence[int], total: int, seed: int, jobs: int, scratch: Path) -> dict[str, Any]:
    """Run trials of a part, out of `total`, below the folder `scratch`; what came out, JSON-ready."""
    global _job
    module = import_module(f"trials.{part}")
    began = time.perf_counter()
    (scratch / part).mkdir(parents=True)
    world = module.prepare(scratch / part, seed, total)
    _job = partial(module.trial, world)
    found = list(track(_results(numbers, jobs), part, len(numbers), console=Console(stderr=True), transient=True))
    kinds = sorted({one.kind for _, one in found})
    failures = [{"trial": number, **asdict(one)} for number, one in sorted(found) if one.got is not None]
    return {
        "part": part,
        "command": " ".join(["python", *sys.argv]),
        "seed": seed,
        "trials": len(numbers),
        "faults": sum(one.events for _, one in found),
        "failed": len(failures),
        "outcomes": dict(sorted(Counter(one.outcome for _, one in found).items())),
        "kinds": {kind: _counts([one for _, one in found if one.kind == kind]) for kind in kinds},
        "failures": failures,
        "seconds": round(time.perf_counter() - began, 1),
        "commit": _git("describe", "--always", "--dirty", "--exclude", "*"),
        "date": _git("show", "-s", "--format=%cs", "HEAD"),
        "versions": versions(),
        "machine": machine(),
    }  # fmt: skip


def _counts(found: Sequence[Trial]) -> dict[str, int]:
    failed = sum(one.got is not None for one in found)
    return {"trials": len(found), "faults": sum(one.events for one in found), "failed": failed}


def _results(numbers: Sequence[int], jobs: int) -> Iterator[tuple[int, Trial]]:
    """Trials side by side, each in a fork of this process, which has imported all that they need."""
    if jobs == 1:
        yield from map(_numbered, numbers)
        return
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        yield from pool.imap_unordered(_numbered, numbers)


def _numbered(number: int) -> tuple[int, Trial]:
    return number, _job(number)


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(SOURCE), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def show(report: dict[str, Any]) -> None:
    """The table of a part, and its failures."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table("kind", "trials", "faults", "as it should be", title=f"{report['part']}, seed {report['seed']}")
    for kind, counts in report["kinds"].items():
        table.add_row(kind, str(counts["trials"]), str(counts["faults"]), str(counts["trials"] - counts["failed"]))
    console.print(table)
    console.print(f"{report['outcomes']} in {report['seconds']} s", highlight=False, markup=False)
    for one in report["failures"][:40]:
        console.print(f"  {one['trial']} {one['kind']}: {one['did']} -> {one['got']}", highlight=False, markup=False)


def write(sources: Sequence[Path]) -> Path:
    """`results/reliability.md` from the parts' reports in JSON files, the first of which gives it its name."""
    parts = [part for source in sources for part in json.loads(source.read_text())]
    lines = [
        "# Reliability",
        "",
        "Written by `python benchmarks/faults.py write` from the counts beside it; every failure is listed.",
        "",
        "| part | trials | faults | as it should be | commit | date | device |",
        "|---|---:|---:|---:|---|---|---|",
    ]
    for one in parts:
        fine = one["trials"] - one["failed"]
        place = f"`{one['commit']}` | {one['date']} | {one['machine']['device']}, {one['machine']['threads']} thread"
        lines.append(f"| {NOUNS[one['part']]} | {one['trials']:,} | {one['faults']:,} | {fine:,} | {place} |")
    for one in parts:
        lines += ["", f"## {NOUNS[one['part']].capitalize()}", "", MEANT[one["part"]], ""]
        lines += [f"`{one['command']}`, {one['seconds']:,.0f} s", ""]
        lines += [f"* {outcome}: {count:,}" for outcome, count in one["outcomes"].items()]
        lines += ["", "| kind | trials | faults | as it should be |", "|---|---:|---:|---:|"]
        for kind, counts in one["kinds"].items():
            lines.append(
                f"| {kind} | {counts['trials']} | {counts['faults']} | {counts['trials'] - counts['failed']} |"
            )
        if one["failures"]:
            lines += ["", "Failures:", ""]
            lines += [f"* {f['trial']}, {f['kind']}: {f['did']} → {f['got']}" for f in one["failures"]]
    target = sources[0].with_suffix(".md")
    target.write_text("\n".join(lines) + "\n")
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", metavar="PART", help=f"{', '.join(PARTS)}, all; or: write FILE.json")
    parser.add_argument("--trials", type=int, help="how many; by default as many as the table of results has")
    parser.add_argument("--only", type=int, action="append", help="this trial; may be given several times")
    parser.add_argument("--quick", action="store_true", help="a few trials of each part")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="an empty folder for the trials, those that fail are left there")
    parser.add_argument("--out", type=Path, help="a JSON file; the parts that it has already are replaced or stay")
    args = parser.parse_args()
    if args.parts[0] == "write" and len(args.parts) > 1:
        print(f"written to {write([Path(part) for part in args.parts[1:]])}")
        return
    parts = [*PARTS] if args.parts == ["all"] else args.parts
    if unknown := {*parts} - {*PARTS}:
        parser.error(f"there is no part {min(unknown)!r}; known: {', '.join(PARTS)}, all")
    reports = {} if not (args.out and args.out.exists()) else {r["part"]: r for r in json.loads(args.out.read_text())}
    failed, scratch = 0, args.keep or Path(tempfile.mkdtemp(prefix="faults-"))
    for part in parts:
        total = args.trials or (QUICK if args.quick else PARTS)[part]
        reports[part] = conduct(part, args.only or range(total), total, args.seed, args.jobs, scratch)
        failed += reports[part]["failed"]
        show(reports[part])
        if args.out:
            args.out.write_text(json.dumps([reports[name] for name in PARTS if name in reports], indent=2) + "\n")
    if not args.keep:
        shutil.rmtree(scratch)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
