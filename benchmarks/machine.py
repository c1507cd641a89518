"""What every benchmark says of the machine that it ran on, and where it says it."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """Device, threads and version."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else f"cpu {platform.processor() or platform.machine()}",
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def publish(report: dict[str, Any], out: Path | None) -> None:
    """Print the report with the machine that made it, and write it to `out`."""
    text = json.dumps(report | {"machine": machine()}, indent=2)
    print(text)
    if out:
        out.write_text(text + "\n")
