"""From a checkpoint to what runs elsewhere: formats, what each is worth, and how fast it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hydraprune.core.lazy import lazy
from hydraprune.core.registry import Registry

if TYPE_CHECKING:
    from hydraprune.deploy.base import Format as Format
    from hydraprune.deploy.base import Original as Original
    from hydraprune.deploy.worth import Worth as Worth

FORMATS: Registry[Format] = Registry(
    "format",
    "hydraprune.deploy.base:Format",
    {
        "packed": "hydraprune.deploy.packed:PackedFormat",
        "dense": "hydraprune.deploy.dense:DenseFormat",
        "hub": "hydraprune.deploy.hub:HubFormat",
        "shrunk": "hydraprune.deploy.shrunk:ShrunkFormat",
        "n:m": "hydraprune.deploy.n_of_m:NOfMFormat",
        "onnx": "hydraprune.deploy.onnx_format:OnnxFormat",
        "onnx-int8": "hydraprune.deploy.onnx_int8:OnnxInt8Format",
        "vnncomp": "hydraprune.deploy.vnncomp:VnnCompFormat",
    },
)

__getattr__, __dir__ = lazy(__name__, FORMATS.classes)
