"""A kill at a chosen file operation. Imports nothing of ours, since new processes import it before all else."""

import os
import signal
from collections.abc import Callable
from typing import Any

OPERATIONS = ("replace", "fsync", "unlink", "link", "truncate")


def arm(number: int, after: bool) -> None:
    """Kill this process at its file operation `number`, from 1: before it is done, or `after`."""
    count = 0

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            mine = count == number
            if mine and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = operation(*args, **kwargs)
            if mine:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))
