"""A few faults of every kind, as the benchmark of faults tries them: each time all is as it should be."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "faults.py"


@pytest.mark.parametrize(("parts", "trials"), [(["kills", "pairs"], 1), (["mutations", "misuses", "hostile"], 6)])
def test_every_fault_is_met(tmp_path, parts, trials):
    out = tmp_path / "faults.json"
    command = [sys.executable, str(FAULTS), *parts, "--trials", str(trials), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    reports = json.loads(out.read_text())
    assert [(report["part"], report["failures"]) for report in reports] == [(part, []) for part in parts], done.stdout
    assert [report["trials"] for report in reports] == [trials] * len(parts)
    assert done.returncode == 0
