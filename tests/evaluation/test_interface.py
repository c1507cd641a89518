"""Certificates as users of the package call them."""

import pytest
import torch

import hydraprune as hp
from attacks.trained import digits
from hydraprune.core.errors import DataError, SpecError
from hydraprune.evaluation import smoothing


def test_bounds_and_verification():
    net, (x, y) = digits()
    batch, threat = hp.Batch(x[:20], y[:20]), hp.ThreatModel(eps="2/255")
    lower, upper = hp.logit_bounds(net, batch.x, threat, method="ibp")
    logits = net(batch.x)
    assert lower.shape == upper.shape == (20, 10)
    assert ((lower <= logits + 1e-5) & (logits <= upper + 1e-5)).all()
    margins = hp.margin_bounds(net, batch.x, batch.y, threat, method="crown")
    assert (margins.shape, margins[torch.arange(20), batch.y].tolist()) == ((20, 10), [0.0] * 20)
    least = margins.scatter(1, batch.y[:, None], torch.inf).amin(1)
    found = hp.verify(net, batch, threat, method="crown")
    assert isinstance(found, hp.Verification)
    assert [record.verified for record in found.records] == (least > 0).tolist()
    assert found.summary.verified_accuracy == (least > 0).double().mean()


def test_certification():
    net, (x, _) = digits()
    label, radius = hp.certify(net, x[:3], sigma=0.25, n0=10, n=100, alpha=0.01, seed=4)
    found = smoothing.certify(net, x[:3], hp.Smoothing(sigma=0.25, n0=10, n=100, alpha=0.01), seed=4)
    assert torch.equal(label, found.label)
    assert torch.equal(radius, found.radius)
    assert (radius > 0).any()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"sigma": 0}, r"Smoothing\.sigma: Input should be greater than 0"),
        ({"sigma": -0.1}, r"Smoothing\.sigma"),
        ({"sigma": 0.25, "alpha": 0}, r"Smoothing\.alpha: Input should be greater than 0"),
        ({"sigma": 0.25, "alpha": 1}, r"Smoothing\.alpha: Input should be less than 1"),
        ({"sigma": 0.25, "n": 0}, r"Smoothing\.n: Input should be greater than or equal to 1"),
        ({"sigma": 0.25, "n0": 0}, r"Smoothing\.n0"),
    ],
)
def test_bad_settings(settings, complaint):
    with pytest.raises(SpecError, match=complaint):
        hp.certify(digits()[0], digits()[1].x[:1], **settings)


def test_bad_images_and_networks():
    net, (x, _) = digits()
    with pytest.raises(DataError, match="pixels must lie in"):
        hp.certify(net, x[:1] + 1, sigma=0.25, n=10)
    with pytest.raises(DataError, match="expected images"):
        hp.certify(net, x[0], sigma=0.25, n=10)
    training = torch.nn.Sequential(*net, torch.nn.Dropout(0.1))
    with pytest.raises(SpecError, match=r"training mode has no certificate.*model\.eval\(\)"):
        hp.logit_bounds(training, x[:1], hp.ThreatModel(eps=0.1))
    with pytest.raises(SpecError, match="eps 8 is above 1"):
        hp.ThreatModel(eps=8)
