"""An ONNX graph computed by torch, operator by operator, against ONNX Runtime."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from hydraprune.core.errors import CheckpointError, SpecError
from hydraprune.deploy.onnx_network import OnnxNetwork
from hydraprune.deploy.onnx_twin import OPERATORS, OnnxTwin

RNG = np.random.default_rng(0)


def floats(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def proto(nodes, constants=(), opset=18):
    """A model of images (B, 4, 6, 6) whose `nodes` make `result`, of which logits are read."""
    graph = helper.make_graph(
        [
            *nodes,
            helper.make_node("Flatten", ["result"], ["flat"]),
            helper.make_node("MatMul", ["flat", "end"], ["logits"]),
        ],
        "net",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 4, 6, 6])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def saved(path, nodes, constants, width):
    onnx.save(proto(nodes, [*constants.items(), ("end", floats(width, 3))]), path)
    return path


def node(kind, *inputs, **settings):
    return helper.make_node(kind, ["images", *inputs], ["result"], **settings)


W, B = floats(5, 4, 3, 3), floats(5)
SCALE, ZERO = np.float32(0.05), np.uint8(3)
LEVELS = {"s": SCALE, "z": ZERO}
CASES = {
    "conv": ([node("Conv", "w", "b", pads=[1, 1, 1, 1], strides=[2, 1])], {"w": W, "b": B}, 5 * 3 * 6),
    "conv-uneven": ([node("Conv", "w", pads=[0, 1, 1, 2], dilations=[1, 2])], {"w": W}, 5 * 5 * 5),
    "conv-grouped": ([node("Conv", "w", group=2)], {"w": floats(6, 2, 3, 3)}, 6 * 4 * 4),
    "max": ([node("MaxPool", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 0])], {}, 4 * 3 * 3),
    "max-uneven": ([node("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1])], {}, 4 * 3 * 3),
    "average": ([node("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2])], {}, 4 * 3 * 3),
    "average-padded": (
        [node("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[3, 3], count_include_pad=1)], {}, 16,
    ),
    "global": ([node("GlobalAveragePool")], {}, 4),
    "mean": ([node("ReduceMean", "axes", keepdims=0)], {"axes": np.array([2, 3])}, 4),
    "norm": (
        [node("BatchNormalization", "a", "b", "m", "v", epsilon=0.1)],
        {"a": floats(4), "b": floats(4), "m": floats(4), "v": np.abs(floats(4))}, 144,
    ),
    "clip": ([node("Clip", "low", "high")], {"low": np.float32(0.2), "high": np.float32(0.7)}, 144),
    "clip-above": ([node("Clip", "", "high")], {"high": np.float32(0.7)}, 144),
    "hard-sigmoid": ([node("HardSigmoid", alpha=0.3, beta=0.4)], {}, 144),
    **{kind: ([node(kind)], {}, 144) for kind in ("Relu", "Sigmoid", "Tanh", "Erf", "HardSwish", "Identity")},
    **{kind: ([node(kind, "c")], {"c": floats(4, 1, 1)}, 144) for kind in ("Add", "Sub", "Mul", "Div")},
    "softmax": ([node("Softmax", axis=1)], {}, 144),
    "transpose": ([node("Transpose", perm=[0, 2, 3, 1])], {}, 144),
    "concat": ([node("Concat", "images", axis=1)], {}, 288),
    "reshape": ([node("Reshape", "shape")], {"shape": np.array([0, 2, -1])}, 144),
    "gemm": (
        [helper.make_node("Flatten", ["images"], ["x"]), helper.make_node("Gemm", ["x", "w", "b"], ["result"])],
        {"w": floats(144, 7), "b": floats(7)}, 7,
    ),
    "gemm-turned": (
        [helper.make_node("Flatten", ["images"], ["x"]), helper.make_node("Gemm", ["x", "w"], ["result"], transB=1)],
        {"w": floats(7, 144)}, 7,
    ),
    "quantized": (
        [
            helper.make_node("QuantizeLinear", ["images", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["result"]),
        ],
        LEVELS, 144,
    ),
    "quantized-signed": (
        [
            helper.make_node("QuantizeLinear", ["images", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["result"]),
        ],
        {"s": np.float32(0.003), "z": np.int8(-7)}, 144,
    ),
    "weight-per-channel": (
        [
            helper.make_node("DequantizeLinear", ["w", "s", "z"], ["x"], axis=0),
            helper.make_node("Conv", ["images", "x"], ["result"]),
        ],
        {"w": RNG.integers(-64, 65, (5, 4, 3, 3), dtype=np.int8), "s": np.abs(floats(5)), "z": np.zeros(5, np.int8)},
        5 * 4 * 4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_an_operator_gives_what_onnx_runtime_gives(case, tmp_path):
    path = saved(tmp_path / "net.onnx", *CASES[case])
    x = torch.rand(3, 4, 6, 6)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    expected = torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
    assert torch.allclose(OnnxTwin(path)(x), expected, rtol=1e-4, atol=1e-4)
    assert torch.allclose(OnnxNetwork(path)(x), expected, rtol=1e-4, atol=1e-4)


def test_every_operator_is_tried():
    tried = {step.op_type for nodes, _, _ in CASES.values() for step in nodes} | {"MatMul", "Flatten"}
    assert tried == OPERATORS.keys()


@pytest.mark.parametrize("zero", [0, 10])
def test_rounding_passes_gradients_straight_through_and_where_it_stands_for_relu_as_that(zero, tmp_path):
    nodes, _, width = CASES["quantized"]
    path = saved(tmp_path / "net.onnx", nodes, {"s": np.float32(0.002), "z": np.uint8(zero)}, width)  # up to 0.51
    twin, x = OnnxTwin(path), (2 * torch.rand(2, 4, 6, 6) - 1).requires_grad_()
    (gradient,) = torch.autograd.grad(twin(x)[:, 0].sum(), x)
    end = numpy_helper.to_array(onnx.load(path).graph.initializer[-1])
    expected = torch.tensor(end[:, 0]).expand(2, -1)
    if zero == 0:
        expected = expected * (x.flatten(1) > 0)
    assert torch.allclose(gradient.flatten(1), expected)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([node("Sin")], "the ONNX operator 'Sin' is not known here"),
        (
            [node("MaxPool", kernel_shape=[4, 4], strides=[4, 4], ceil_mode=1)],
            "'MaxPool' with ceil_mode 1 is not known",
        ),
        ([node("Conv", "w", auto_pad="SAME_UPPER")], "'Conv' with auto_pad b'SAME_UPPER' is not known"),
    ],
)
def test_what_is_not_known_is_refused_in_one_sentence(nodes, message, tmp_path):
    width = {"Sin": 144, "MaxPool": 16, "Conv": 4 * 6 * 6}[nodes[0].op_type]
    path = saved(tmp_path / "net.onnx", nodes, {"w": floats(4, 4, 3, 3)}, width)
    with pytest.raises(SpecError, match=message):
        OnnxTwin(path)


def test_values_that_do_not_fill_their_shape_are_damage(tmp_path):
    nodes, constants, width = CASES["conv"]
    path = saved(tmp_path / "net.onnx", nodes, constants, width)
    model = onnx.load(path)
    model.graph.initializer[1].raw_data = model.graph.initializer[1].raw_data[:-4]
    onnx.save(model, path)
    for reader in (OnnxTwin, OnnxNetwork):
        with pytest.raises(CheckpointError):
            reader(path)
