"""The smallest file: masks and weights near the limit of their entropy."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from hydraprune.core.packing import Values, require_zstd
from hydraprune.deploy.base import Format, Original
from hydraprune.runs.single import write_packed


class PackedFormat(Format):
    """Masks and the weights that stay, entropy-coded in one file, which `hp.load` and numpy alone read.

    Args:
        values: how these weights are written. `float32` changes none; `float16`, `bfloat16` and `int8` (with a scale
            for each output) round, so the network is another one.
    """

    kind: Literal["packed"] = "packed"
    values: Values = "float32"
    suffix: ClassVar[str] = ".hpk"

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.values}"

    @property
    def rounds(self) -> bool:
        return self.values != "float32"

    def require(self) -> None:
        super().require()
        require_zstd()

    def write(self, source: Original, path: Path) -> None:
        checkpoint = source.checkpoint
        write_packed(path, checkpoint.meta, checkpoint.values, checkpoint.masks, self.values)
