"""Bounds against reference numbers of another implementation, computed with auto_LiRPA."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bounds.golden import NETS, load
from hydraprune.bounds import BOUNDS
from hydraprune.core.threat import Box, ThreatModel

METHODS: dict[str, Any] = {
    "ibp": "ibp",
    "crown_ibp": "crown-ibp",
    "crown_ibp_zero": {"kind": "crown-ibp", "slope": "zero"},
    "crown": {"kind": "crown", "chunk": 4096},
    "crown_same_slope": "symbolic",
    "crown_same_slope, way back": {"kind": "symbolic", "chunk": 4096},
}
PRECISIONS = {"f64": torch.float64, "f32": torch.float32}


@pytest.fixture
def folder(golden: Path) -> Path:
    return golden / "bounds"


def wrong_classes(margins: Tensor, y: Tensor) -> Tensor:
    """(B, K - 1): without the column of the label."""
    return margins[~F.one_hot(y, margins.shape[1]).bool()].view(len(y), -1)


def close(found: Tensor, reference: np.ndarray, precision: str) -> None:
    atol = 1e-9 if precision == "f64" else 1e-5 * (1 + float(np.abs(reference).max()))
    rtol = 1e-9 if precision == "f64" else 0.0
    np.testing.assert_allclose(found.detach().numpy(), reference, rtol=rtol, atol=atol)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETS)
def test_logits_and_margins(folder: Path, name: str, method: str, precision: str) -> None:
    net, arrays = load(folder, name, PRECISIONS[precision])
    x, y = torch.from_numpy(arrays["x"]).to(PRECISIONS[precision]), torch.from_numpy(arrays["y"])
    bound = BOUNDS.make(METHODS[method], "bound")
    # All radii in one batch.
    boxes = [ThreatModel(eps=float(eps)).box(x) for eps in arrays["eps"]]
    labels = y.repeat(len(boxes))
    with torch.no_grad():
        analysis = bound.analyse(net, Box(*map(torch.cat, zip(*boxes, strict=True))))
        lower, upper = analysis.logits()
        margins = analysis.margins(labels)
    assert margins.gather(1, labels[:, None]).eq(0).all()
    key = method.partition(",")[0]
    margins = wrong_classes(margins, labels)
    close(lower, np.concatenate(arrays[f"{precision}/{key}/logits_lb"]), precision)
    close(upper, np.concatenate(arrays[f"{precision}/{key}/logits_ub"]), precision)
    close(margins, np.concatenate(arrays[f"{precision}/{key}/margin_lb"]), precision)
    if precision == "f64":
        assert (margins.numpy() <= np.concatenate(arrays["f64/attack_margin_ub"]) + 1e-9).all()


@pytest.mark.parametrize("method", ["ibp", "crown", "crown_same_slope"])
@pytest.mark.parametrize("name", [name for name in NETS if name != "linear"])
def test_boxes_before_each_relu(folder: Path, name: str, method: str) -> None:
    net, arrays = load(folder, name, torch.float64)
    box = ThreatModel(eps="2/255").box(torch.from_numpy(arrays["x"][:2]).double())
    with torch.no_grad():
        boxes = BOUNDS.make(METHODS[method], "bound").analyse(net, box).boxes
    assert list(boxes) == [node["id"] for node in net.nodes if node["op"] == "relu"]
    for relu, found in boxes.items():
        close(found.lower, arrays[f"f64/{method}/pre/{relu}/lb"], "f64")
        close(found.upper, arrays[f"f64/{method}/pre/{relu}/ub"], "f64")


@pytest.mark.parametrize("method", ["ibp", "crown_ibp"])
@pytest.mark.parametrize("name", NETS)
def test_robust_loss_and_gradients(folder: Path, name: str, method: str) -> None:
    net, arrays = load(folder, name, torch.float64)
    x, y = torch.from_numpy(arrays["x"]).double(), torch.from_numpy(arrays["y"])
    margins = BOUNDS.make(METHODS[method], "bound").margins(net, ThreatModel(eps="2/255").box(x), y)
    loss = F.cross_entropy(-margins, y)
    loss.backward()
    close(loss, arrays[f"f64/{method}/robust_ce"], "f64")
    norms = {key.rpartition("/")[2]: value for key, value in arrays.items() if f"f64/{method}/gradnorm/" in key}
    # At units that are constant zero, gradients of linear bounds hang on conventions; the reference has none there.
    assert set(norms) == ({key for key, _ in net.named_parameters()} if norms else set())
    assert norms or (name, method) == ("cnn_sparse95", "crown_ibp")
    for key, norm in norms.items():
        close(net.get_parameter(key).grad.norm(), norm, "f64")
