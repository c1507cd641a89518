"""The networks of the reference bounds, built from their descriptions as ordinary modules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

NETS = [
    "linear",
    "mlp3",
    "cnn_small",
    "cnn_bn",
    "resnet_small",
    "wrn_preact",
    "cnn_avgpool",
    "cnn_sparse95",
    "cnn_maxpool",
    "cnn_norm_odd",
    "cnn_cat_drop",
]


class Normalize(nn.Module):
    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float64).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def _layer(node: dict[str, Any]) -> nn.Module | None:
    match node["op"]:
        case "conv2d":
            names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias")
            values = {name: node[name] for name in names}
            return nn.Conv2d(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
        case "linear":
            return nn.Linear(node["in_features"], node["out_features"], node["bias"])
        case "batchnorm":
            return (nn.BatchNorm1d if node["dims"] == 1 else nn.BatchNorm2d)(node["num_features"], node["eps"])
        case "normalize":
            return Normalize(node["mean"], node["std"])
        case "relu":
            return nn.ReLU()
        case "maxpool2d":
            return nn.MaxPool2d(node["kernel_size"], node["stride"])
        case "avgpool2d":
            return nn.AvgPool2d(node["kernel_size"], node["stride"])
        case "global_avgpool":
            return nn.AdaptiveAvgPool2d(1)
        case "flatten":
            return nn.Flatten()
        case "dropout":
            return nn.Dropout(node["p"])
    return None


class Described(nn.Module):
    """The network of one description; layers go by the names of its nodes."""

    def __init__(self, description: dict[str, Any]) -> None:
        super().__init__()
        self.nodes = description["nodes"]
        self.output = description["output"]
        for node in self.nodes:
            layer = _layer(node)
            if layer is not None:
                self.add_module(node["id"], layer)

    def forward(self, x: Tensor) -> Tensor:
        values = {"x": x}
        for node in self.nodes:
            inputs = [values[name] for name in node["inputs"]]
            if node["op"] == "add":
                values[node["id"]] = inputs[0] + inputs[1]
            elif node["op"] == "concat":
                values[node["id"]] = torch.cat(inputs, 1)
            else:
                values[node["id"]] = getattr(self, node["id"])(*inputs)
        return values[self.output]


def load(folder: Path, name: str, dtype: torch.dtype) -> tuple[Described, dict[str, np.ndarray]]:
    """The network in evaluation mode, and the reference arrays."""
    net = Described(json.loads((folder / f"{name}.json").read_text()))
    with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
        arrays = dict(file)
    weights = {k.removeprefix("weights/"): torch.from_numpy(v) for k, v in arrays.items() if k.startswith("weights/")}
    missing, unexpected = net.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(key.endswith(("num_batches_tracked", ".mean", ".std")) for key in missing)
    return net.to(dtype).eval(), arrays
