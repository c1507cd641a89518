"""What lies in an exported file or folder, as a network."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from hydraprune.core.plain import plain_copy
from hydraprune.deploy.vnncomp import network_in
from hydraprune.nets import Net
from hydraprune.runs.checkpoint import open_checkpoint


def opened(artifact: Path, trust_code: bool | Net = False, given: nn.Module | None = None) -> nn.Module:
    """The network of an exported file or folder, or of a checkpoint's folder: images (B, C, H, W) to logits (B, K).

    It is in evaluation mode, on the CPU, without parametrizations. That of an ONNX file has no gradients.

    Args:
        artifact: what `export` or `save` wrote.
        trust_code: whether a factory that it names may be imported and called; see `open_checkpoint`.
        given: the network to fill, for one that names none; it is not changed.

    Raises:
        CheckpointError: if it is damaged, of no known format, or names no network and none was given.
        MissingError: for an ONNX file without the packages that run it.
    """
    if (graph := graph_of(artifact)) is not None:
        from hydraprune.deploy.onnx_network import OnnxNetwork

        return OnnxNetwork(graph).eval()
    given = None if given is None else plain_copy(given)
    return plain_copy(open_checkpoint(artifact, trust_code).network(given)).eval()


def graph_of(artifact: Path) -> Path | None:
    """The ONNX file that an artifact is, or that lies in it; None if there is none."""
    return artifact if artifact.suffix == ".onnx" else network_in(artifact)
