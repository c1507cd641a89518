"""All bounds of the reference networks, in both precisions."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bounds.golden import NETS, load
from hydraprune.bounds.base import Bounds
from hydraprune.bounds.methods import IBP, Crown, CrownIBP, Symbolic
from hydraprune.core.threat import ThreatModel

METHODS = {
    "ibp": IBP(),
    "crown_ibp": CrownIBP(),
    "crown_ibp_zero": CrownIBP(slope="zero"),
    "crown": Crown(),
    "crown_same_slope": Crown(slope="same"),
    "symbolic": Symbolic(),
}
FOLDERS = {"symbolic": "crown_same_slope"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETS)
def test_bounds_are_those_of_the_reference(reference: Path, name: str, method: str, dtype: torch.dtype) -> None:
    net, arrays = load(reference / "golden" / "bounds", name, dtype)
    x, y = torch.from_numpy(arrays["x"]).to(dtype), torch.from_numpy(arrays["y"])
    where = f"{'f64' if dtype == torch.float64 else 'f32'}/{FOLDERS.get(method, method)}"
    bounds: Bounds = METHODS[method]
    for number, eps in enumerate(arrays["eps"]):
        box = ThreatModel(eps=float(eps)).box(x)
        with torch.no_grad():
            lower, upper = bounds.logits(net, box)
            margins = bounds.margins(net, box, y)
        rivals = F.one_hot(y, margins.shape[1]) == 0
        assert (margins[~rivals] == 0).all()
        for found, key in ((lower, "logits_lb"), (upper, "logits_ub"), (margins[rivals].view(len(y), -1), "margin_lb")):
            expected = arrays[f"{where}/{key}"][number]
            if dtype == torch.float64:
                np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9)
            else:
                largest = max(np.abs(arrays[f"{where}/{k}"]).max() for k in ("logits_lb", "logits_ub", "margin_lb"))
                np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5 * (1 + largest))


@pytest.mark.parametrize("method", ["ibp", "crown_ibp"])
@pytest.mark.parametrize("name", [name for name in NETS if name != "cnn_sparse95"])
def test_robust_loss_and_its_gradients_are_those_of_the_reference(reference: Path, name: str, method: str) -> None:
    net, arrays = load(reference / "golden" / "bounds", name, torch.float64)
    net.requires_grad_(True)
    x, y = torch.from_numpy(arrays["x"]).double(), torch.from_numpy(arrays["y"])
    margins = METHODS[method].margins(net, ThreatModel(eps="2/255").box(x), y)
    loss = F.cross_entropy(-margins, y)
    np.testing.assert_allclose(loss.item(), arrays[f"f64/{method}/robust_ce"], rtol=1e-9)
    loss.backward()
    for key, expected in arrays.items():
        if key.startswith(f"f64/{method}/gradnorm/"):
            parameter = net.get_parameter(key.removeprefix(f"f64/{method}/gradnorm/"))
            np.testing.assert_allclose(parameter.grad.norm().item(), expected, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("method", ["ibp", "crown", "symbolic"])
@pytest.mark.parametrize("name", ["mlp3", "cnn_bn", "resnet_small", "wrn_preact", "cnn_cat_drop"])
def test_images_of_the_box_keep_to_the_bounds(reference: Path, name: str, method: str) -> None:
    net, arrays = load(reference / "golden" / "bounds", name, torch.float64)
    x, y = torch.from_numpy(arrays["x"]).double(), torch.from_numpy(arrays["y"])
    threat = ThreatModel(eps="8/255")
    with torch.no_grad():
        lower, upper = METHODS[method].logits(net, threat.box(x))
        margins = METHODS[method].margins(net, threat.box(x), y)
        for seed in range(20):
            inside = threat.sample(x, torch.Generator().manual_seed(seed))
            corner = threat.project(x, x + threat.eps * (inside - x).sign())
            for image in (inside, corner):
                logits = net(image)
                assert (logits >= lower - 1e-9).all()
                assert (logits <= upper + 1e-9).all()
                assert (logits.gather(1, y[:, None]) - logits >= margins - 1e-9).all()
