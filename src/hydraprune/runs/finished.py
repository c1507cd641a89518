"""Whether a folder holds a whole checkpoint, told without reading it."""

from __future__ import annotations

from pathlib import Path

from hydraprune.core.errors import CheckpointError

META = "checkpoint.json"
"""What a checkpoint is; it is written last."""


def finished(folder: Path) -> bool:
    """Whether the folder holds a whole checkpoint."""
    return (folder / META).is_file()


def refuse_unfinished(folder: Path) -> None:
    """See that there is a checkpoint.

    Raises:
        CheckpointError: if there is none.
    """
    if not finished(folder):
        raise CheckpointError(f"{folder} holds no finished checkpoint (no {META}); give a folder such as RUN/finetune")
