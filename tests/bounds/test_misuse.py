"""What bounds refuse in one sentence, and the forms of a threat that they take."""

import pytest
import torch

import hydraprune as hp
from contracts.material import batch, net
from misuse import refused

X, Y = batch(4)
THREAT = {"norm": "linf", "eps": "2/255"}


CALLS = {
    "a number": (lambda m: hp.logit_bounds(m, X, 0.1), "threat is 0.1; give ThreatModel(...) or its settings by name"),
    "a norm": (lambda m: hp.logit_bounds(m, X, {"norm": "l2", "eps": 1}), "bounds hold for boxes, not for the norm"),
    "a bool": (lambda m: hp.logit_bounds(m, X, {"eps": True}), "threat.eps: True is not a number"),
    "a method": (lambda m: hp.logit_bounds(m, X, THREAT, "crwn"), "method: unknown bound 'crwn'; did you mean"),
    "float64": (lambda m: hp.logit_bounds(m, X.double(), THREAT), "images are in torch.float32, torch.float64"),
    "half images": (lambda m: hp.logit_bounds(m, X.half(), THREAT), "bounds need both in float32, or both in float64"),
    "bytes": (lambda m: hp.logit_bounds(m, (X * 255).byte(), THREAT), "images are in torch.float32, torch.uint8"),
    "0 to 255": (lambda m: hp.logit_bounds(m, X * 255, THREAT), "images are floats in [0, 1]; divide bytes by 255"),
    "colour": (lambda m: hp.margin_bounds(m, X.expand(-1, 3, -1, -1), Y, THREAT), "does not take images (4, 3, 8, 8)"),
    "labels": (lambda m: hp.margin_bounds(m, X, Y.float(), THREAT), "labels are torch.float32 of shape (4,)"),
    "labels beyond": (lambda m: hp.margin_bounds(m, X, Y + 7, THREAT), "label 10 is none of the 10 classes"),
}  # fmt: skip


@pytest.mark.parametrize("case", CALLS)
def test_calls_that_are_refused(case):
    call, message = CALLS[case]
    model = net().eval()
    with refused(message, model):
        call(model)


def test_networks_that_are_refused():
    training, half = net(), net().eval().half()
    with refused("a network in training mode has no certificate", training):
        hp.logit_bounds(training, X, THREAT)
    with refused("network and images are in torch.float16; bounds need both in float32", half):
        hp.logit_bounds(half, X.half(), THREAT)
    with refused("expected a network (torch.nn.Module), got the class Linear"):
        hp.logit_bounds(torch.nn.Linear, X, THREAT)


def test_a_threat_may_be_its_settings():
    model = net().eval()
    given = hp.margin_bounds(model, X, Y, hp.ThreatModel(eps=2 / 255), "ibp")
    assert torch.equal(hp.margin_bounds(model, X, Y, THREAT, {"kind": "ibp"}), given)
    wide = hp.margin_bounds(net().eval().double(), X.double(), Y, THREAT, "ibp")
    assert torch.allclose(wide.float(), given, atol=1e-4)
