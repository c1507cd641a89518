"""A smaller network of the same kind."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from hydraprune.core.errors import SpecError
from hydraprune.core.plain import tensors
from hydraprune.deploy.base import Format, Original
from hydraprune.masks.shrink import shrink
from hydraprune.runs.single import write_dense


class ShrunkFormat(Format):
    """Safetensors of the network without the channels that do not matter: smaller layers, equal logits, less time.

    `hp.load` makes the network with layers of these sizes. Other removed weights are written as zeros.
    """

    kind: Literal["shrunk"] = "shrunk"
    suffix: ClassVar[str] = ".safetensors"

    def check(self, source: Original) -> None:
        if source.checkpoint.meta.net is None:
            raise SpecError("a network that is made in Python cannot be made again with smaller layers; use hp.shrink")
        small = tensors(shrink(source.network, source.shape))
        if all(value.shape == small[name].shape for name, value in source.checkpoint.values.items()):
            raise SpecError(
                "no channel is removed everywhere, so no layer can be smaller; prune it with `structure: coupled`, or "
                "export it as packed, dense or onnx"
            )

    def write(self, source: Original, path: Path) -> None:
        meta = source.checkpoint.meta.model_copy(update={"shrunk": True})
        write_dense(path, meta, tensors(source.small))
