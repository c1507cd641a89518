"""`hydraprune report` on a study of synthetic runs: time and peak memory, of which importing the package is a part.

    python benchmarks/report.py --out benchmarks/results/report_60.json

The runs are those of the tests: six recipes with the same number of seeds each, five networks in each run, with all
that evaluation leaves beside a checkpoint. Weights are few (360), so the figures are those of the page, not of reading.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from machine import publish

RECIPES = 6
FOLDERS = Path(__file__).parent.parent / "tests" / "report" / "folders.py"
COMMAND = [sys.executable, "-c", "from hydraprune.cli import main; main()"]
IMPORT = [sys.executable, "-c", "from hydraprune.report import write_page"]


def tests() -> ModuleType:
    """The module with which the tests write runs."""
    spec = importlib.util.spec_from_file_location("folders", FOLDERS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measured(command: list[str], rounds: int) -> dict[str, Any]:
    """Median wall and processor time, and the largest resident memory, of a command in a process of its own."""
    seconds, cpu, peaks = [], [], []
    for _ in range(rounds):
        began = time.perf_counter()
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        seconds.append(time.perf_counter() - began)
        cpu.append(usage.ru_utime + usage.ru_stime)
        peaks.append(usage.ru_maxrss / 1024)
        if status:
            raise SystemExit(f"{' '.join(command)} failed")
    medians = {"seconds": statistics.median(seconds), "cpu_seconds": statistics.median(cpu)}
    return medians | {"all_seconds": seconds, "peak_mib": max(peaks)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    folders = tests()
    with tempfile.TemporaryDirectory() as scratch:
        study, page = Path(scratch) / "study", Path(scratch) / "page.html"
        for number in range(args.runs):
            seed, kind = divmod(number, RECIPES)
            recipe = folders.recipe(f"tiny-{kind}", seed=seed, objective={"kind": "trades", "beta": float(kind)})
            folders.write_run(study / f"run{number:03}", recipe)
        found = measured([*COMMAND, "report", str(study), "--out", str(page)], args.rounds)
        report = {
            "runs": args.runs,
            "networks": sum(1 for _ in study.rglob("checkpoint.json")),
            "page_bytes": page.stat().st_size,
            "report": found,
            "import_only": measured(IMPORT, args.rounds),
        }
    publish(report, args.out)


if __name__ == "__main__":
    main()
