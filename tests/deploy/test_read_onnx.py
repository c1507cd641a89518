"""ONNX files of strangers."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from hydraprune.core.errors import CheckpointError
from hydraprune.deploy.opened import opened
from hydraprune.deploy.read_onnx import read_onnx

CONV = {"kernel_shape": [3, 3]}


def model(**changes):
    """A classifier of images (B, 1, 8, 8) by hand; `changes` go to its convolution."""
    steps = [
        helper.make_node("Conv", ["images", "w"], ["x"], **CONV | changes),
        helper.make_node("Flatten", ["x"], ["y"]),
        helper.make_node("MatMul", ["y", "v"], ["logits"]),
    ]
    constants = {"w": np.ones((2, 1, 3, 3), np.float32), "v": np.ones((72, 4), np.float32)}
    graph = helper.make_graph(
        steps,
        "net",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def elsewhere(name):
    def change(proto):
        tensor = proto.graph.initializer[0]
        onnx.external_data_helper.set_external_data(tensor, name)
        tensor.ClearField("raw_data")

    return change


def grown(proto):
    """A product of a column with a row: 2 ** 36 numbers out of half a megabyte."""
    column = numpy_helper.from_array(np.ones((2**18, 1), np.int8), "column")
    row = numpy_helper.from_array(np.ones((1, 2**18), np.int8), "row")
    proto.graph.initializer.extend([column, row])
    proto.graph.node.insert(0, helper.make_node("MatMulInteger", ["column", "row"], ["huge"]))


def another_graph(proto):
    body = helper.make_graph([helper.make_node("Identity", ["images"], ["z"])], "b", [], [])
    proto.graph.node[0].attribute.append(helper.make_attribute("body", body))


def counted(proto):
    proto.graph.node.insert(0, helper.make_node("NonZero", ["images"], ["places"]))


CHANGES = {
    "another file": (elsewhere("weights.bin"), "the values of 'w' lie in another file"),
    "a file outside": (elsewhere("../../../etc/passwd"), "the values of 'w' lie in another file"),
    "other operators": (lambda p: setattr(p.graph.node[0], "domain", "com.microsoft"), "operators of 'com.microsoft'"),
    "a loop": (another_graph, "'Conv' holds another graph"),
    "claims": (lambda p: p.graph.initializer[0].dims.__setitem__(0, 2**40), "'w' claims more numbers than the file"),
    "negative": (lambda p: p.graph.initializer[0].dims.__setitem__(0, -1), "'w' claims more numbers than the file"),
    "two inputs": (lambda p: p.graph.input.append(helper.make_tensor_value_info("b", 1, [1])), "2 inputs and 1 output"),
    "images of any size": (
        lambda p: setattr(p.graph.input[0].type.tensor_type.shape.dim[2], "dim_param", "side"), "how large its images",
    ),
    "no logits": (lambda p: setattr(p.graph.output[0].type.tensor_type, "elem_type", 7), "'logits' is not float32"),
    "a name that nothing makes": (lambda p: p.graph.node[1].input.__setitem__(0, "none"), "is not run"),
    "growth": (grown, "it makes 68,719,[0-9,]+ numbers of one image"),
    "a result of any size": (counted, "nothing says how large 'places' is"),
    "functions": (
        lambda p: p.functions.append(helper.make_function("", "f", [], [], [], [helper.make_opsetid("", 18)])),
        "it has functions",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_what_no_classifier_needs_is_refused(what, tmp_path):
    change, message = CHANGES[what]
    proto = model()
    change(proto)
    path = tmp_path / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(CheckpointError, match=message) as said:
        opened(path)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"strides": [0, 1]},
        {"group": 0},
        {"dilations": [1, -1]},
        {"pads": [0, 0, 10**6, 0]},
        {"kernel_shape": [3, 10**9]},
    ],
)
def test_sizes_that_would_divide_by_zero_or_fill_the_memory_are_refused(settings, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(model(**settings).SerializeToString())
    with pytest.raises(CheckpointError, match=f"'Conv' has {next(iter(settings))}"):
        opened(path)


def test_the_graph_by_hand_is_taken_and_right(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(model().SerializeToString())
    x = torch.rand(2, 1, 8, 8)
    sums = torch.nn.functional.avg_pool2d(x, 3, 1).sum((1, 2, 3)) * 9 * 2
    assert torch.allclose(opened(path)(x), sums[:, None].expand(2, 4), rtol=1e-4)


def test_damage_anywhere_is_an_error_of_ours_or_another_network(tmp_path):
    """Cut and overwritten at random: never another error than ours, nor a crash."""
    whole, path, rng = model().SerializeToString(), tmp_path / "net.onnx", np.random.default_rng(0)
    refused = taken = 0
    for _ in range(300):
        content = bytearray(whole[: rng.integers(1, len(whole) + 1)] if rng.random() < 0.3 else whole)
        for place in rng.integers(0, min(len(content), 400), rng.integers(1, 4)):
            content[place] = rng.integers(0, 256)
        path.write_bytes(bytes(content))
        try:
            opened(path)
        except CheckpointError as error:
            refused += "\n" not in str(error)
        else:
            taken += 1
    assert refused + taken == 300
    assert refused > 100


def test_what_is_missing_or_no_onnx_is_said_to_be(tmp_path):
    with pytest.raises(CheckpointError, match="is missing"):
        read_onnx(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("not a network" * 20)
    with pytest.raises(CheckpointError, match=r"text\.onnx is no"):
        read_onnx(tmp_path / "text.onnx")
