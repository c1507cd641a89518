"""One at a time, even when holders die."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from hydraprune.study import claims
from hydraprune.study.claims import claim


def test_a_claim_is_held_by_one_and_released(tmp_path):
    with claim(tmp_path, "a") as first:
        assert first
        with claim(tmp_path, "a") as second, claim(tmp_path, "ab") as other:
            assert not second
            assert other
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError), claim(tmp_path, "a"):
        raise ZeroDivisionError
    with claim(tmp_path, "a") as again:
        assert again


def left(folder, name="a", host=None, pid=None, age=0.0):
    """A claim that someone has left behind."""
    path = folder / f"{name}@1"
    path.write_text(json.dumps({"host": host or socket.gethostname(), "pid": pid or os.getpid()}))
    os.utime(path, (time.time() - age, time.time() - age))


def ended():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("holder", "free"),
    [
        ({}, False),
        ({"age": claims.STALE / 2}, False),
        ({"age": claims.STALE + 1}, True),
        ({"pid": "ended"}, True),
        ({"pid": "ended", "host": "elsewhere"}, False),
        ({"host": "elsewhere", "age": claims.STALE + 1}, True),
    ],
)
def test_dead_claims_are_taken_over(tmp_path, holder, free):
    left(tmp_path, **({**holder, "pid": ended()} if holder.get("pid") else holder))
    with claim(tmp_path, "a") as ours:
        assert ours == free
        if free:
            with claim(tmp_path, "a") as second:
                assert not second


def test_a_claim_that_is_being_written_lives(tmp_path):
    (tmp_path / "a@1").touch()
    with claim(tmp_path, "a") as ours:
        assert not ours


def test_names_that_begin_alike_do_not_meddle(tmp_path):
    with claim(tmp_path, "sparsity=0") as one, claim(tmp_path, "sparsity=0.9") as other:
        assert one
        assert other


def test_it_shows_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.01)
    with claim(tmp_path, "a"):
        (path,) = tmp_path.iterdir()
        os.utime(path, (0, 0))
        until = time.time() + 10
        while path.stat().st_mtime == 0 and time.time() < until:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0


def test_of_many_at_once_one_wins(tmp_path):
    for name in range(20):
        left(tmp_path, str(name), age=claims.STALE + 1)
        wins, gate, release = [], threading.Barrier(8), threading.Event()

        def grab(name=name, wins=wins, gate=gate, release=release):
            gate.wait()
            with claim(tmp_path, str(name)) as ours:
                wins.append(ours)
                if ours:
                    release.wait()

        threads = [threading.Thread(target=grab) for _ in range(8)]
        for thread in threads:
            thread.start()
        while len(wins) < 8:
            time.sleep(0.001)
        release.set()
        for thread in threads:
            thread.join()
        assert sum(wins) == 1
