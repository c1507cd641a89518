"""Plain safetensors whose zeros lie as sparse tensor cores want them."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from hydraprune.core.errors import SpecError
from hydraprune.deploy.base import Format, Original
from hydraprune.masks.structures import NOfM
from hydraprune.runs.single import write_dense


class NOfMFormat(Format):
    """Safetensors as `dense` writes them, for hardware that skips zeros: `n` of every `m` weights stay, verified.

    The `m` are neighbours along the input channels, for each output and kernel position; layers that were not pruned
    may be dense.

    Args:
        n: weights of every `m` that may be other than zero.
        m: of how many.
    """

    kind: Literal["n:m"] = "n:m"
    n: int = 2
    m: int = 4
    suffix: ClassVar[str] = ".safetensors"

    @property
    def name(self) -> str:
        return f"{self.n}-of-{self.m}"

    def check(self, source: Original) -> None:
        pattern, checkpoint = NOfM(n=self.n, m=self.m), source.checkpoint
        pruned = [name for name, (kept, total) in checkpoint.meta.layers.items() if kept < total]
        if not pruned:
            raise SpecError(f"no layer is pruned to {self.n} of {self.m}; export it as packed, dense or onnx")
        for name in pruned:
            module = source.network.get_submodule(name.rpartition(".")[0])
            if beyond := pattern.on(module).beyond(checkpoint.values[name]):
                raise SpecError(
                    f"{name!r} has {beyond:,} weights more than {self.n} of every {self.m}; prune it by "
                    f'`structure: {{kind: "n:m", n: {self.n}, m: {self.m}}}`, or export it as packed, dense or onnx'
                )

    def write(self, source: Original, path: Path) -> None:
        write_dense(path, source.checkpoint.meta, source.checkpoint.values)
