"""Networks as ONNX, in one message without anything beside it."""

from __future__ import annotations

import io
import logging
import warnings
from contextlib import redirect_stderr
from typing import TYPE_CHECKING

import torch
from torch import nn

from hydraprune.core.errors import SpecError
from hydraprune.core.extras import extra
from hydraprune.core.twin import judged
from hydraprune.deploy.base import Original
from hydraprune.deploy.read_onnx import LARGEST

if TYPE_CHECKING:
    from onnx import ModelProto

INPUT, OUTPUT = "images", "logits"
OPSET = 18
"""The oldest that the exporter writes without conversion; ONNX Runtime and OpenVINO take it."""


def require_onnx(what: str) -> None:
    """See that the packages are there that write and run ONNX.

    Raises:
        MissingError: if one is not.
    """
    with extra("onnx", what):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401


def as_onnx(source: Original, batch: int | None = None) -> ModelProto:
    """The network: `images` (B, C, H, W) in [0, 1], float32, to `logits` (B, K).

    Channels that do not matter to the logits are gone. Batch norm is folded into the convolution before it, and a
    weight that is zero stays zero. Nothing in it tells of the machine that wrote it.

    Args:
        batch: images at a time, for programs that take no other number; None takes any.

    Raises:
        SpecError: if it cannot be exported, or takes more than 2 GB.
    """
    network = judged(source.small)
    proto = _exported(network, source.shape, batch)
    for node in proto.graph.node:
        del node.metadata_props[:]  # names of files, lines of code
        node.doc_string = ""
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info, *proto.graph.initializer):
        del value.metadata_props[:]
    del proto.graph.metadata_props[:], proto.metadata_props[:]
    return proto


def _exported(network: nn.Module, shape: tuple[int, int, int], batch: int | None) -> ModelProto:
    held = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    if held > LARGEST:
        raise SpecError(f"the network takes {held:,} bytes, and one ONNX file at most {LARGEST:,}; export it as dense")
    axes = None if batch else ({0: torch.export.Dim("batch")},)
    told = logging.getLogger().manager.disable
    try:
        logging.disable(logging.CRITICAL)  # what fails is raised
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # of packages that the exporter calls
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                (torch.zeros(batch or 2, *shape),),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=axes,
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # a network may refuse to be traced in any way it likes
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        why = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise SpecError(f"the network cannot be exported to ONNX ({why}); export it as packed or dense") from error
    finally:
        logging.disable(told)
    assert program is not None
    proto: ModelProto = program.model_proto
    return proto
