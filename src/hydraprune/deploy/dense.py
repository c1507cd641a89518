"""Plain safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from hydraprune.deploy.base import Format, Original
from hydraprune.runs.single import write_dense


class DenseFormat(Format):
    """Safetensors under the names of the plain network's `load_state_dict`, zeros written."""

    kind: Literal["dense"] = "dense"
    suffix: ClassVar[str] = ".safetensors"

    def write(self, source: Original, path: Path) -> None:
        write_dense(path, source.checkpoint.meta, source.checkpoint.values)
