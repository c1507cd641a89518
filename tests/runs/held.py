"""A process that owns a folder."""

from contextlib import contextmanager
from multiprocessing import get_context

from hydraprune.runs.lock import own

CONTEXT = get_context("fork")
"""Forked processes start at once, and show that they inherit nothing."""


@contextmanager
def another(folder):
    """A process that owns the folder; it ends at the end."""
    pipe, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_hold, args=(folder, theirs))
    process.start()
    assert pipe.poll(60)
    try:
        yield process
    finally:
        pipe.send("release")
        process.join()


def _hold(folder, pipe):
    with own(folder):
        pipe.send("held")
        pipe.poll(60)
