"""Processes that work on a study, and what becomes of them."""

import os
import signal
import time

import pytest

from hydraprune.runs.lock import holder
from hydraprune.study import run_study
from hydraprune.study.settle import run_plain
from recipes.tiny import contents
from runs.held import CONTEXT
from study.small import study

LONG = study(set={"stages.finetune.epochs": 150}, grid={"stages.prune.budget.sparsity": [0.5, 0.9]})
FIRST, SECOND = (cell.name for cell in LONG.cells())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run_study(LONG, out, call=run_plain)
    return contents(out)


def started(out):
    """A process with a study that has others beside it."""
    process = CONTEXT.Process(target=run_study, args=(LONG, out))
    process.start()
    return process


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def at_work(cell):
    """The process that works on a cell, which is in the middle of its last stage."""
    until((cell / "finetune" / "state.safetensors").exists)
    return holder(cell).pid


def runs(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_study_that_is_killed_leaves_nobody_and_goes_on_to_the_same_networks(tmp_path, undisturbed, end):
    killed = started(tmp_path)
    worker = at_work(tmp_path / FIRST)
    assert worker not in (os.getpid(), killed.pid)
    os.kill(killed.pid, end)
    assert run_study(LONG, tmp_path, call=run_plain) == {FIRST: "done", SECOND: "done"}  # and does not wait for us
    until(lambda: not runs(worker), 5)
    killed.join()
    assert contents(tmp_path) == undisturbed


def test_two_studies_side_by_side_do_each_cell_once_and_one_takes_over_from_the_other(tmp_path, undisturbed):
    one, other = started(tmp_path), started(tmp_path)
    workers = {at_work(tmp_path / FIRST), at_work(tmp_path / SECOND)}
    assert len(workers) == 2
    one.kill()
    other.join()
    one.join()
    until(lambda: not any(map(runs, workers)), 5)
    assert other.exitcode == 0
    assert contents(tmp_path) == undisturbed
