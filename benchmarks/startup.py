"""What it costs to start: importing, answering without work, refusing, and reaching the first training step.

    python benchmarks/startup.py --out benchmarks/results/startup.json

Each is a process of its own, from its start to its end; a run ends with the first step of its recipe. What needs
torch is given beyond `import torch` of the same round. Commands are called as the installed script calls them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import publish

COMMAND = "from hydraprune.cli import main; main()"
END = "; import os; os._exit(0)"
TORCH = "import torch" + END
FIRST_STEP = f"""
import os
from hydraprune.train.hooks import ProgressBar
ProgressBar.on_step = lambda *_: os._exit(0)
{COMMAND}
"""
BEYOND = {
    "import hydraprune": ("import torch, hydraprune" + END, []),
    "import hydraprune, and fit": ("import torch, hydraprune; hydraprune.fit" + END, []),
    "an optimizer of torch, which imports torch._dynamo": (
        "import torch; torch.optim.SGD([torch.zeros(1, requires_grad=True)])" + END,
        [],
    ),
    "a run, to its first step": (FIRST_STEP, ["run", "digits-cnn_digits-trades", "--out", "{out}"]),
}
ALONE = {
    "hydraprune --help": ["--help"],
    "hydraprune list": ["list"],
    "unknown command": ["lst"],
    "unknown option": ["run", "digits-demo", "--uot", "x"],
    "unknown recipe": ["run", "digits-dmo", "--out", "x"],
    "missing recipe file": ["run", "gone.yaml", "--out", "x"],
    "folder that cannot be": ["run", "digits-demo", "--out", "/dev/null/x"],
    "missing checkpoint": ["evaluate", "gone"],
    "missing run": ["report", "gone"],
}


def seconds(script: str, arguments: list[str]) -> float:
    """Wall time of a process that may refuse what it is asked."""
    compiled = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-c", script, *(part.format(out=f"{scratch}/run") for part in arguments)]
        began = time.perf_counter()
        ended = subprocess.run(command, cwd=scratch, env=compiled, capture_output=True)
        took = time.perf_counter() - began
    if ended.returncode not in (0, 2) or b"Traceback" in ended.stderr:
        raise SystemExit(f"{' '.join(arguments)} failed: {ended.stderr.decode()}")
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    seconds(FIRST_STEP, BEYOND["a run, to its first step"][1])  # compiles what it imports
    found: dict[str, list[float]] = {}
    for _ in range(args.rounds):
        torch = seconds(TORCH, [])
        found.setdefault("import torch", []).append(torch)
        for name, (script, arguments) in BEYOND.items():
            found.setdefault(f"{name}, beyond torch", []).append(seconds(script, arguments) - torch)
        for name, arguments in ALONE.items():
            found.setdefault(name, []).append(seconds(COMMAND, arguments))
    medians = {name: statistics.median(values) for name, values in found.items()}
    for name, median in medians.items():
        print(f"| {name} | {median:.2f} |")
    publish({"seconds": medians, "all_seconds": found, "load": os.getloadavg()}, args.out)


if __name__ == "__main__":
    main()
