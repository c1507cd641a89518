"""What one trial is."""

from __future__ import annotations

import re
from dataclasses import dataclass

from trials.processes import Ended


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        kind: for the table.
        outcome: in two words.
        did: what was done.
        got: what is wrong with what came out; None if nothing is.
        events: how many faults it had: a chain of kills has several.
    """

    kind: str
    outcome: str
    did: str
    got: str | None = None
    events: int = 1


def held(ended: Ended) -> bool:
    """Whether a command says, in one line, that another process has the folder."""
    return bool(ended.complaint and re.search(r"process \d+|another process", ended.complaint))
