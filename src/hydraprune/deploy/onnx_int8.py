"""One ONNX file whose weights and activations are 8-bit integers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from hydraprune.core.errors import SpecError
from hydraprune.core.files import write_atomically
from hydraprune.data.images import Images
from hydraprune.deploy.base import Format, Original
from hydraprune.deploy.to_onnx import INPUT, OUTPUT, as_onnx, require_onnx

if TYPE_CHECKING:
    from onnx import ModelProto

AT_ONCE = 50
"""Images that run through the network at a time while ranges are measured."""
PREPARED = {"onnx.quant.pre_process": "onnxruntime.quant"}
"""What says that the graph needs no preparation: its norms are folded, its shapes known."""


class OnnxInt8Format(Format):
    """One ONNX file of 8-bit integers, for CPUs: weights per output channel, activations per tensor (arXiv:1712.05877).

    Weights are symmetric, so zeros stay zeros, and lie within 64 of 0: the sum of two products with an activation then
    fits 16 bits, and processors without VNNI, which add such pairs first, compute what those with it do. Activations
    are unsigned; their ranges are the largest that training images cause. Logits are not rounded.

    Args:
        calibration: first training images that ranges are measured on.
    """

    kind: Literal["onnx-int8"] = "onnx-int8"
    calibration: int = Field(default=300, ge=1)
    suffix: ClassVar[str] = ".onnx"
    alone: ClassVar[bool] = True
    needs_data: ClassVar[bool] = True

    @property
    def rounds(self) -> bool:
        return True

    def require(self) -> None:
        super().require()
        require_onnx(f"format {self.kind!r}")

    def check(self, source: Original) -> None:
        if source.data is None:
            raise SpecError(
                "format 'onnx-int8' measures ranges on training images; give `data=`, or export as packed, which "
                "rounds weights alone"
            )

    def write(self, source: Original, path: Path) -> None:
        assert source.data is not None
        images = source.data.train.take(self.calibration)
        proto = _rounded(as_onnx(source), images, path.with_name("rounded.onnx"))
        write_atomically(path, proto.SerializeToString(deterministic=True))

    def twin(self, source: Original, path: Path) -> nn.Module:
        from hydraprune.deploy.onnx_twin import OnnxTwin

        return OnnxTwin(path)


class _CalibrationReader:
    """Images as ONNX Runtime asks for them."""

    def __init__(self, images: Images) -> None:
        self.batches: Iterator[Any] = images.batches(AT_ONCE, seed=0).epoch(0)

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch[0].numpy()}


def _rounded(proto: ModelProto, images: Images, aside: Path) -> ModelProto:
    """The graph with its weights rounded, and with steps that round what flows between its layers."""
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    onnx.helper.set_model_props(proto, PREPARED)
    told = logging.getLogger().manager.disable
    logging.disable(logging.WARNING)  # of layers that stay as they are
    try:
        quantize_static(
            proto,
            aside,
            _CalibrationReader(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
        )
        rounded = onnx.load(aside)
    except Exception as error:  # of a library that is made for graphs of all kinds
        why = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise SpecError(f"ONNX Runtime cannot round the network ({why}); export it as onnx") from error
    finally:
        logging.disable(told)
        aside.unlink(missing_ok=True)
    del rounded.metadata_props[:]
    _free_logits(rounded)
    return rounded


def _free_logits(proto: ModelProto) -> None:
    """Take out the steps that round the logits: two classes on the same level would be a tie."""
    nodes = {name: node for node in proto.graph.node for name in node.output}
    back = nodes[OUTPUT]
    if back.op_type != "DequantizeLinear":
        return
    level = nodes[back.input[0]]
    last = nodes[level.input[0]]
    if sum(level.input[0] in node.input for node in proto.graph.node) > 1:
        return
    for node in (back, level):
        proto.graph.node.remove(node)
    last.output[0] = OUTPUT
    used = {name for node in proto.graph.node for name in node.input}
    for tensor in [tensor for tensor in proto.graph.initializer if tensor.name not in used]:
        proto.graph.initializer.remove(tensor)
