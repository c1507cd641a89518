"""Processes that work on a study, and what becomes of them."""

import os
import signal
import time

import pytest

from hydraprune.runs.lock import holder
from hydraprune.study import run_study
from hydraprune.study.settle import Outcome, bury, run_plain, settle
from hydraprune.study.shared import key, trunk
from recipes.tiny import contents
from runs.held import CONTEXT, another
from study.small import study

LONG = study(set={"stages.finetune.epochs": 60}, grid={"stages.prune.budget.sparsity": [0.5, 0.9]})
FIRST, SECOND = (cell.name for cell in LONG.cells())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run_study(LONG, out, call=run_plain)
    return networks(out)


def networks(out):
    """Run -> what it holds."""
    return {str(file.relative_to(out)): contents(file.parent) for file in out.rglob("recipe.yaml")}


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


def of(process):
    """State and parent of a process; None if there is none."""
    try:
        with open(f"/proc/{process}/stat") as file:
            state, parent, *_ = file.read().rpartition(")")[2].split()
    except FileNotFoundError:
        return None
    return None if state == "Z" else (state, int(parent))


def test_who_dies_at_what_cells_share_costs_them_all_but_is_not_followed(tmp_path):
    one, two = LONG.cells()
    shared = tmp_path / "shared" / key(trunk(one.recipe))
    with another(tmp_path / one.name) as process, another(shared) as other:
        assert bury(one, tmp_path, process.pid, "killed") == Outcome("elsewhere")
        process.kill()
        process.join()
        assert bury(one, tmp_path, process.pid, "killed").state == "failed"
        assert not (shared / "failure.json").exists()  # it was another's
        other.kill()
        other.join()
    assert bury(one, tmp_path, other.pid, "killed").note == f"{one.name}: failed: killed"
    assert (shared / "failure.json").exists()
    outcome = settle(two, tmp_path, 0.0, lambda *_: pytest.fail("it was tried again"))
    assert outcome == Outcome("failed", f"{two.name}: failed: killed")
    assert settle(two, tmp_path, time.time(), lambda *_: 1 / 0).spoiled


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_study_that_is_killed_leaves_nobody_and_goes_on_to_the_same_networks(tmp_path, undisturbed, end):
    killed = started(tmp_path)
    worker = at_work(tmp_path / FIRST)
    assert worker not in (os.getpid(), killed.pid)
    os.kill(killed.pid, end)
    assert run_study(LONG, tmp_path, call=run_plain) == {FIRST: "done", SECOND: "done"}  # and does not wait for us
    until(lambda: of(worker) is None, 5)
    killed.join()
    assert networks(tmp_path) == undisturbed


def test_of_two_studies_side_by_side_one_takes_over_what_the_other_was_at(tmp_path, undisturbed):
    both = [started(tmp_path), started(tmp_path)]
    worker = at_work(tmp_path / FIRST)
    killed, other = sorted(both, key=lambda process: process.pid != of(worker)[1])
    killed.kill()
    other.join()
    assert other.exitcode == 0
    assert of(worker) is None
    killed.join()
    assert networks(tmp_path) == undisturbed
