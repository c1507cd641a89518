"""What runs an exported network: torch, its compiler, ONNX Runtime, OpenVINO; on the CPU, as the file has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hydraprune.core.errors import CheckpointError
from hydraprune.core.extras import extra
from hydraprune.core.precision import exact
from hydraprune.core.twin import judged
from hydraprune.deploy.opened import graph_of, opened
from hydraprune.nets import Net

Images = NDArray[np.float32]
"""(B, C, H, W) in [0, 1]."""
Call = Callable[[], Images]
"""Computes the logits (B, K), float32, of the images that it was made for."""
Opened = Callable[[Images], Call]
"""Readies an opened network for images: what is done once for a batch size is done here."""


@dataclass(frozen=True)
class Runtime:
    """A way to run exported networks.

    Attributes:
        package: that it is made of.
        graphs: whether it takes ONNX files; if not, it takes all others.
        opens: gives a network for a path, on so many threads; the third argument is whether a factory that the file
            names may be imported and called. Raises MissingError without its package, and CheckpointError for what it
            cannot run.
        default: whether it is measured unless others are asked for.
    """

    package: str
    graphs: bool
    opens: Callable[[Path, int, bool | Net], Opened]
    default: bool = True

    def takes(self, artifact: Path) -> bool:
        """Whether files or folders of that kind are for it."""
        return (graph_of(artifact) is not None) == self.graphs

    def version(self) -> str:
        """Of its package."""
        return version(self.package)


def _eager(artifact: Path, threads: int, trust_code: bool | Net) -> Opened:
    return _in_torch(judged(opened(artifact, trust_code)).to(memory_format=torch.channels_last), threads)


def _compiled(artifact: Path, threads: int, trust_code: bool | Net) -> Opened:
    network = judged(opened(artifact, trust_code)).to(memory_format=torch.channels_last)
    ready = _in_torch(torch.compile(network, dynamic=False), threads)

    def tried(images: Images) -> Call:
        call = ready(images)
        try:
            call()
        except Exception as error:  # of the compiler, or of the one for C++ that it calls
            why = str(error).strip().partition("\n")[0]
            raise CheckpointError(f"torch.compile fails on {artifact.name} ({why}); leave `compiled` out") from error
        return call

    return tried


def _in_torch(network: Callable[[torch.Tensor], torch.Tensor], threads: int) -> Opened:
    def ready(images: Images) -> Call:
        x = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)

        def call() -> Images:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            with torch.inference_mode(), exact():
                logits: Images = network(x).numpy()
            return logits

        return call

    return ready


def _onnxruntime(artifact: Path, threads: int, trust_code: bool | Net) -> Opened:
    from hydraprune.deploy.onnx_network import OnnxNetwork

    network = OnnxNetwork(_graph(artifact), threads)

    def ready(images: Images) -> Call:
        x = torch.from_numpy(images)
        return lambda: network(x).numpy()

    return ready


def _openvino(artifact: Path, threads: int, trust_code: bool | Net) -> Opened:
    with extra("openvino", "runtime 'openvino'"):
        import openvino
    from hydraprune.deploy.read_onnx import read_onnx

    core, proto = openvino.Core(), read_onnx(_graph(artifact)).SerializeToString()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }

    def ready(images: Images) -> Call:
        try:
            model: Any = core.read_model(proto)
            model.reshape(list(images.shape))
            request = core.compile_model(model, "CPU", settings).create_infer_request()
        except RuntimeError as error:
            why = str(error).strip().partition("\n")[0]
            raise CheckpointError(
                f"OpenVINO cannot run {artifact.name} ({why}); leave it out by `--runtimes`"
            ) from None

        def call() -> Images:
            logits: Images = request.infer([images], share_inputs=True)[0]
            return logits

        return call

    return ready


def _graph(artifact: Path) -> Path:
    graph = graph_of(artifact)
    assert graph is not None
    return graph


RUNTIMES: dict[str, Runtime] = {
    "torch": Runtime("torch", False, _eager),
    "compiled": Runtime("torch", False, _compiled, default=False),
    "onnxruntime": Runtime("onnxruntime", True, _onnxruntime),
    "openvino": Runtime("openvino", True, _openvino),
}
"""By name; the first that takes an artifact is its own baseline."""
