"""One ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from torch import nn

from hydraprune.core.files import write_atomically
from hydraprune.deploy.base import Format, Original
from hydraprune.deploy.to_onnx import as_onnx, require_onnx


class OnnxFormat(Format):
    """One ONNX file for ONNX Runtime, OpenVINO and others: images in [0, 1] to logits, any number at a time."""

    kind: Literal["onnx"] = "onnx"
    suffix: ClassVar[str] = ".onnx"
    alone: ClassVar[bool] = True

    def require(self) -> None:
        super().require()
        require_onnx(f"format {self.kind!r}")

    def write(self, source: Original, path: Path) -> None:
        write_atomically(path, as_onnx(source).SerializeToString(deterministic=True))

    def twin(self, source: Original, path: Path) -> nn.Module:
        from hydraprune.deploy.onnx_twin import OnnxTwin

        return OnnxTwin(path)
