"""Where commands write."""

import os
import sys

from rich.console import Console

# A file or a pipe has no width; lines are not to be broken there.
console = Console(width=None if sys.stdout.isatty() else 200)


def printable(text: str) -> str:
    """One line, without the control characters by which a stranger's file could write elsewhere on a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def first() -> bool:
    """Whether this process is the first of those that torchrun, Slurm or Lightning Fabric has started, or alone."""
    ranks = [os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ]
    return not ranks or int(ranks[0]) == 0
