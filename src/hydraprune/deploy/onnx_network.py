"""An ONNX file as a network: what runs is ONNX Runtime."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from hydraprune.core.errors import CheckpointError, SpecError
from hydraprune.core.extras import extra
from hydraprune.core.files import reason
from hydraprune.core.spec import whole
from hydraprune.deploy.read_onnx import image_of, read_onnx


class OnnxNetwork(nn.Module):
    """Images (B, C, H, W), float32 in [0, 1], to logits (B, K), by ONNX Runtime on the CPU; without gradients.

    It has no parameters. Copies share the session, which nothing changes. A file that takes a fixed number of images
    is run as often as it takes.

    Args:
        path: an `.onnx` file.
        threads: of one operator; None takes as many as there are cores.

    Raises:
        CheckpointError: if the file is missing, damaged, or no image classifier; see `read_onnx`.
        MissingError: without the packages onnx and onnxruntime.
    """

    def __init__(self, path: Path | str, threads: int | None = None) -> None:
        super().__init__()
        with extra("onnx", "running ONNX files"):
            import onnxruntime
        proto = read_onnx(Path(path))
        images = image_of(proto.graph)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what fails is raised
        options.inter_op_num_threads = 1
        options.intra_op_num_threads = 0 if threads is None else whole(threads, "threads", 1)
        try:
            session = onnxruntime.InferenceSession(
                proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # of ONNX Runtime's C++
            raise CheckpointError(f"{path} is not run: {reason(error)}; restore it or export it again") from None
        self.session: Any = session
        self.input = images.name
        self.batch = images.type.tensor_type.shape.dim[0].dim_value

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = copy.copy(self)
        memo[id(self)] = twin
        return twin

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K), float32.

        Raises:
            SpecError: where a gradient is asked for.
        """
        if torch.is_grad_enabled() and x.requires_grad:
            raise SpecError("ONNX Runtime gives no gradients; search on the network's twin, and judge here: `transfer`")
        parts = x.split(self.batch) if self.batch else [x]
        return torch.cat([self._run(part) for part in parts]).to(x.device)

    def _run(self, x: Tensor) -> Tensor:
        images = x.detach().to("cpu", torch.float32).contiguous().numpy()
        (logits,) = self.session.run(None, {self.input: images})
        return torch.from_numpy(logits)
