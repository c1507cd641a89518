"""One writer at a time, even when writers die."""

import errno
import fcntl
import json
import os
import signal
import socket
import sys
import threading
import time

import pytest

from hydraprune.core.errors import BusyError, HydrapruneError, TrainingError
from hydraprune.runs import lock
from hydraprune.runs.lock import LOCK, awaited, holder, own
from runs.held import CONTEXT, another


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(lock, "TURN", 0.2)


def elsewhere(target, *arguments):
    """The exit code of a process that runs `target`."""
    process = CONTEXT.Process(target=target, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode


def refused(folder):
    """Exits with 3 if the folder is another's."""
    try:
        with own(folder):
            pass
    except BusyError:
        os._exit(3)


def test_a_folder_is_owned_by_one_process_and_released(tmp_path):
    with another(tmp_path) as process:
        with pytest.raises(BusyError, match=rf"{tmp_path} is being written by process {process.pid} on ") as caught:
            own(tmp_path).__enter__()
        line = str(caught.value)
        assert socket.gethostname() in line
        assert os.path.basename(sys.argv[0]) in line
        assert f"since {time.strftime('%Y-')}" in line
        assert line.endswith("; wait for it, or end it")
        assert holder(tmp_path).pid == process.pid
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError), own(tmp_path):
        raise ZeroDivisionError
    with own(tmp_path):
        assert elsewhere(refused, tmp_path) == 3
    assert elsewhere(refused, tmp_path) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_thread_may_enter_again_and_others_may_not(tmp_path):
    found = []

    def other(folder):
        try:
            with own(folder):
                found.append("entered")
        except BusyError as error:
            found.append(str(error))

    def ask(folder):
        thread = threading.Thread(target=other, args=(folder,))
        thread.start()
        thread.join()
        return found.pop()

    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    with own(tmp_path):
        with own(tmp_path / "link"), own(tmp_path / "inner"):
            assert "by another thread of this process" in ask(tmp_path)
        assert "by another thread of this process" in ask(tmp_path / "link")
        assert ask(tmp_path / "inner") == "entered"
        assert holder(tmp_path).pid == os.getpid()  # looking does not unlock
        assert elsewhere(refused, tmp_path) == 3
    assert ask(tmp_path) == "entered"


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_holder_is_followed_at_once(tmp_path, end):
    with another(tmp_path) as process:
        os.kill(process.pid, end)
        process.join()
        assert (tmp_path / LOCK).exists()
        with own(tmp_path):
            assert elsewhere(refused, tmp_path) == 3
    assert not (tmp_path / LOCK).exists()


def test_a_forked_child_neither_keeps_nor_releases_it(tmp_path):
    child = CONTEXT.Process(target=time.sleep, args=(60,))
    with own(tmp_path):
        child.start()
    with own(tmp_path):
        assert child.is_alive()
    child.kill()
    child.join()
    with own(tmp_path):
        context = own(tmp_path / "inner")
        context.__enter__()
        assert elsewhere(lambda: context.__exit__(None, None, None)) == 0
        assert elsewhere(refused, tmp_path / "inner") == 3
        context.__exit__(None, None, None)


def sign(folder, age=0.0, **who):
    """A lock that someone has left behind."""
    path = folder / LOCK
    here = {"host": socket.gethostname(), "pid": os.getpid(), "command": "hydraprune run", "since": "yesterday"}
    path.write_text(json.dumps(here | who))
    os.utime(path, (time.time() - age, time.time() - age))


def ended():
    """The number of a process that has ended."""
    process = CONTEXT.Process(target=int)
    process.start()
    process.join()
    return process.pid


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize(
    ("left", "free"),
    [
        ({"pid": "ended"}, True),
        ({}, True),  # of an earlier process with our number
        ({"pid": 1}, {True: True, False: False}),  # without locks only its number and its sign of life tell
        ({"pid": 1, "age": lock.STALE + 1}, True),
        ({"host": "elsewhere"}, False),
        ({"host": "elsewhere", "pid": "ended", "age": lock.STALE / 2}, False),
        ({"host": "elsewhere", "age": lock.STALE + 1}, True),
        ({"pid": -1}, True),
        ({"pid": "x"}, True),
        ({"pid": 1 << 40}, True),
    ],
)
def test_what_a_holder_has_left_behind(tmp_path, monkeypatch, kernel, left, free):
    sign(tmp_path, **left | ({"pid": ended()} if left.get("pid") == "ended" else {}))
    if not kernel:
        without_locks(monkeypatch)
    if free if isinstance(free, bool) else free[kernel]:
        with own(tmp_path):
            assert holder(tmp_path).pid == os.getpid()
            assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    else:
        with pytest.raises(BusyError) as caught:
            own(tmp_path).__enter__()
        assert str(caught.value).endswith(
            "(hydraprune run, since yesterday); wait for it, or end it"
            + ("" if "host" not in left else " there; if elsewhere is gone, wait 120 seconds")
        )
        assert (tmp_path / LOCK).exists()


def without_locks(monkeypatch):
    """A file system that has no locks."""

    def refuse(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)


def test_without_locks_a_name_and_its_sign_of_life_exclude(tmp_path, monkeypatch):
    without_locks(monkeypatch)
    with another(tmp_path) as process:
        with pytest.raises(BusyError, match=f"process {process.pid} "):
            own(tmp_path).__enter__()
        process.kill()
        process.join()
        with own(tmp_path):
            assert elsewhere(refused, tmp_path) == 3


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 9999, '{"host": 1}', "\x00\x1b[2J"])
def test_a_damaged_lock_is_taken_over(tmp_path, content):
    (tmp_path / LOCK).write_text(content)
    with own(tmp_path):
        assert holder(tmp_path).pid == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_is_about_to_be_signed_is_left_to_its_maker(tmp_path, monkeypatch):
    """It may be on a machine whose locks are not seen here."""
    monkeypatch.setattr(lock, "TURN", 60)
    monkeypatch.setattr(time, "sleep", lambda seconds: sign(tmp_path, host="elsewhere"))
    (tmp_path / LOCK).touch()
    with pytest.raises(BusyError, match="on elsewhere"):
        own(tmp_path).__enter__()


def test_what_is_no_file_under_its_name_is_one_error_or_removed(tmp_path):
    os.mkfifo(tmp_path / LOCK)
    with own(tmp_path):
        pass
    (tmp_path / LOCK).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TrainingError, match="cannot write in "):
        own(tmp_path).__enter__()
    assert not (tmp_path / "elsewhere").exists()


def test_what_a_stranger_has_signed_stays_one_line(tmp_path):
    sign(tmp_path, host="else\nwhere", command="\x1b[2J\n" * 1000)
    with pytest.raises(BusyError) as caught:
        own(tmp_path).__enter__()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_it_shows_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.01)
    with own(tmp_path):
        os.utime(tmp_path / LOCK, (0, 0))
        until = time.time() + 10
        while (tmp_path / LOCK).stat().st_mtime == 0 and time.time() < until:
            time.sleep(0.01)
        assert (tmp_path / LOCK).stat().st_mtime > 0


def test_a_lock_that_is_removed_while_it_is_signed_is_made_again(tmp_path, monkeypatch):
    """The holder of a file that is no longer there has no lock."""
    locked, original = [], lock._lock

    def slow(file, *, wait=False):
        if not locked:
            (tmp_path / LOCK).unlink()
        locked.append(os.fstat(file).st_ino)
        return original(file, wait=wait)

    monkeypatch.setattr(lock, "_lock", slow)
    with own(tmp_path):
        assert len(locked) == 2
        assert (tmp_path / LOCK).stat().st_ino == locked[-1]


def test_one_that_is_removed_by_hand_is_not_the_next_holders(tmp_path):
    with own(tmp_path):
        (tmp_path / LOCK).unlink()
        with another(tmp_path) as process:
            pass
        (tmp_path / LOCK).write_text("another's")
    assert (tmp_path / LOCK).read_text() == "another's"
    assert process.exitcode == 0


def grab(folder, gate, wins, losses):
    gate.wait(60)
    for _ in range(25):
        try:
            with own(folder):
                made = os.open(folder / "one", os.O_CREAT | os.O_EXCL)  # fails if two are in
                os.close(made)
                wins.value += 1
                os.unlink(folder / "one")
        except BusyError:
            with losses.get_lock():
                losses.value += 1


def test_of_many_at_once_one_is_in(tmp_path):
    gate, wins, losses = CONTEXT.Barrier(4), CONTEXT.Value("i", lock=False), CONTEXT.Value("i")
    folder = tmp_path / "made and removed by all"
    processes = [CONTEXT.Process(target=grab, args=(folder, gate, wins, losses)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert wins.value + losses.value == 100
    assert wins.value > 0
    assert not list(tmp_path.rglob(LOCK))


def test_waiting_for_another_is_told_once(tmp_path):
    told = []
    with another(tmp_path) as process:
        threading.Timer(0.2, process.kill).start()
        with awaited(tmp_path, told.append):
            assert holder(tmp_path).pid == os.getpid()
    assert len(told) == 1
    assert told[0].startswith(f"waiting: {tmp_path} is being written by process {process.pid} ")


def test_folders_that_were_made_for_nothing_are_removed(tmp_path):
    with own(tmp_path / "a" / "b"), own(tmp_path / "a" / "b" / "c"):
        pass
    assert list(tmp_path.iterdir()) == []
    with own(tmp_path / "a" / "b"), own(tmp_path / "a" / "b" / "c"):
        (tmp_path / "a" / "earned").touch()
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["a", "a/earned"]
    (tmp_path / "empty").mkdir()
    with own(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty").is_dir()


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "made" / ("n" * 300), "/proc/run"):
        with pytest.raises(TrainingError, match=r"cannot write in .*; mend that, or choose another folder"):
            own(folder).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_without_posix_locks_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(HydrapruneError, match="no POSIX locks; use Linux or macOS"):
        own(tmp_path / "made").__enter__()
    assert list(tmp_path.iterdir()) == []
