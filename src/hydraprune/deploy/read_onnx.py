"""ONNX files of strangers: what they claim is checked before anything runs.

Refused is whatever an image classifier does not need and a hostile file could use: files beside it, operators of other
domains, functions and loops, tensors larger than the file, steps whose results are of unknown or of absurd size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydraprune.core.errors import CheckpointError
from hydraprune.core.extras import extra
from hydraprune.core.files import reason

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

LARGEST = 2**31 - 1
"""Bytes of a message of protobuf."""
RESULTS = 2**30
"""Numbers that all steps together may make of one image: 100 times those of a ResNet-50 at 224 x 224."""
SIDE = 2**12
"""The largest stride, padding, kernel or dilation; a stride of 0 would divide by it."""
SIZES = {"strides": 1, "dilations": 1, "kernel_shape": 1, "pads": 0, "group": 1}
"""Attribute -> the smallest number that it may hold."""


def read_onnx(path: Path) -> ModelProto:
    """A network in an ONNX file: one input, float32 (B, C, H, W), to one output, float32 (B, K).

    Raises:
        CheckpointError: if it is missing, damaged, or anything else; it says what.
        MissingError: without the package onnx.
    """
    with extra("onnx", "reading ONNX files"):
        import onnx
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise _refused(path, f"it has {size:,} bytes, of which ONNX allows {LARGEST:,}")
        proto = onnx.load_model_from_string(path.read_bytes())
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except Exception as error:  # of protobuf, which has several implementations
        raise CheckpointError(f"{path} is no ONNX file ({reason(error)}); restore it or export it again") from None
    if why := _foreign(proto) or _oversized(proto, size) or _signature(proto.graph):
        raise _refused(path, why)
    try:
        onnx.checker.check_model(proto, full_check=True)
        shapes = _shapes(proto)
    except Exception as error:  # of the checker's C++
        raise _refused(path, reason(error)) from None
    missing = next((name for node in proto.graph.node for name in node.output if name and name not in shapes), None)
    if missing is not None:
        raise _refused(path, f"nothing says how large {missing[:80]!r} is")
    total = sum(math.prod(shape) for shape in shapes.values())
    if total > RESULTS:
        raise _refused(path, f"it makes {total:,} numbers of one image, {RESULTS:,} are allowed")
    return proto


def _refused(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is not run: {why}; restore it or export it again")


def _foreign(proto: ModelProto) -> str | None:
    from onnx import TensorProto

    if proto.functions or proto.training_info or proto.graph.sparse_initializer:
        return "it has functions, training information or sparse tensors"
    domains = {one.domain for one in proto.opset_import} | {node.domain for node in proto.graph.node}
    if other := domains - {"", "ai.onnx"}:
        return f"it needs operators of {min(other)[:80]!r}"
    for node, attribute in _attributes(proto.graph):
        if attribute.HasField("g") or attribute.graphs or attribute.HasField("sparse_tensor") or attribute.ref_attr_name:
            return f"{node.op_type[:80]!r} holds another graph"
    for tensor in _tensors(proto.graph):
        if tensor.data_location != TensorProto.DEFAULT or tensor.external_data:
            return f"the values of {tensor.name[:80]!r} lie in another file"
    return None


def _oversized(proto: ModelProto, size: int) -> str | None:
    for tensor in _tensors(proto.graph):
        # Four bits are the least that a number takes.
        if any(side < 0 for side in tensor.dims) or math.prod(tensor.dims) > 2 * size:
            return f"{tensor.name[:80]!r} claims more numbers than the file holds"
    for node, attribute in _attributes(proto.graph):
        if attribute.name in SIZES:
            numbers = [attribute.i] if attribute.type == attribute.INT else attribute.ints
            most = size if attribute.name == "group" else SIDE
            if any(not SIZES[attribute.name] <= number <= most for number in numbers):
                return f"{node.op_type[:80]!r} has {attribute.name} {list(numbers)[:8]}"
    return None


def _signature(graph: GraphProto) -> str | None:
    from onnx import TensorProto

    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1 or len(graph.output) != 1:
        return f"it has {len(inputs)} inputs and {len(graph.output)} outputs, not one of each"
    for value, rank, what in ((inputs[0], 4, "images (B, C, H, W)"), (graph.output[0], 2, "logits (B, K)")):
        kind = value.type.tensor_type
        if kind.elem_type != TensorProto.FLOAT or len(kind.shape.dim) != rank:
            return f"{value.name[:80]!r} is not float32 {what}"
    if any(side.dim_value < 1 for side in inputs[0].type.tensor_type.shape.dim[1:]):
        return "it does not say how large its images are"
    return None


def _shapes(proto: ModelProto) -> dict[str, tuple[int, ...]]:
    """Name -> shape for one image, of every value whose shape follows; what the file says of them counts for nothing."""
    import onnx

    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    del bare.graph.value_info[:]
    batch = image_of(bare.graph).type.tensor_type.shape.dim[0]
    batch.dim_value = batch.dim_value or 1
    bare.graph.output[0].type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True, data_prop=True).graph
    found = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(side.HasField("dim_value") for side in kind.shape.dim):
            found[value.name] = tuple(side.dim_value for side in kind.shape.dim)
    return found


def image_of(graph: GraphProto) -> Any:
    """The input that is no constant."""
    constants = {tensor.name for tensor in graph.initializer}
    return next(value for value in graph.input if value.name not in constants)


def _attributes(graph: GraphProto) -> Iterator[tuple[NodeProto, AttributeProto]]:
    for node in graph.node:
        for attribute in node.attribute:
            yield node, attribute


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for _, attribute in _attributes(graph):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
