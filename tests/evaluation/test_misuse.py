"""What evaluation takes beside our own batches, and what it refuses in one sentence, leaving the model as it was."""

from dataclasses import fields

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hydraprune as hp
import hydraprune.evaluation.smoothing as smoothing
from contracts.material import batch, net, snapshot, unchanged
from hydraprune.core.objective import Batch
from hydraprune.evaluation import clean_accuracy
from hydraprune.evaluation.checks import check
from hydraprune.evaluation.corruptions import CorruptedBatch, corruption_accuracy
from misuse import refused

X, Y = batch(16)
THREAT = {"norm": "linf", "eps": "8/255"}
PGD = {"kind": "pgd", "steps": 2, "restarts": 1}
SMOOTHING = hp.Smoothing(sigma=0.25, n0=5, n=20)


class Returning(nn.Module):
    """A network that hands its logits over in some wrapping."""

    def __init__(self, wrap):
        super().__init__()
        self.net, self.wrap = net(), wrap

    def forward(self, x):
        return self.wrap(self.net(x))


def run(model, data=(X, Y), **settings):
    return hp.evaluate(model, data, **{"threat": THREAT, "attacks": [PGD], "seed": 0, **settings})


def equal(one, other):
    """Whether two evaluations agree, but for the time."""
    mine, theirs = ({f.name: getattr(e, f.name) for f in fields(e) if f.name != "seconds"} for e in (one, other))
    plain = [[v.tolist() if isinstance(v, torch.Tensor) else v for v in side.values()] for side in (mine, theirs)]
    return str(plain[0]) == str(plain[1])


WAYS = {
    "evaluate": run,
    "clean_accuracy": clean_accuracy,
    "verify": lambda model, data: hp.verify(model, data, THREAT, "ibp"),
    "certify_dataset": lambda model, data: smoothing.certify_dataset(model, data, SMOOTHING, "unwritten.jsonl"),
}

DATA = {
    "a data set": (lambda: hp.load_data("digits"), "a Dataset holds no batches; give data.test, one pair of images"),
    "None": (lambda: None, "None holds no batches"),
    "a name": (lambda: "digits", "'digits' holds no batches"),
    "a tensor": (lambda: X, "a Tensor holds no batches"),
    "a dictionary": (lambda: {"x": X, "y": Y}, "a dict of 'x', 'y' holds no batches"),
    "a torch data set": (lambda: TensorDataset(X, Y), "a TensorDataset holds no batches"),
    "dictionaries": (lambda: [{"image": X, "label": Y}], "pair of tensors (images, labels), got a dict of 'image'"),
    "a triple": (lambda: (X, Y, Y), "a batch is a pair of tensors (images, labels), got a Tensor"),
    "triples": (lambda: [(X, Y, Y)], "got a tuple of Tensor, Tensor, Tensor"),
    "arrays": (lambda: (X.numpy(), Y.numpy()), "a batch is a pair of tensors (images, labels), got a ndarray"),
    "single images": (lambda: [(X[0], Y[0])], "got one image (1, 8, 8) at a time; give batches (B, C, H, W)"),
    "one image": (lambda: (X[0], Y[:1]), "expected images (B, C, H, W) and labels (B,), got (1, 8, 8) and (1,)"),
    "bytes": (lambda: ((X * 255).byte(), Y), "expected float images in [0, 1], got torch.uint8; write x.float() / 255"),
    "0 to 255": (lambda: (X * 255, Y), "pixels must lie in [0, 1], found"),
    "negative": (lambda: (X - 0.5, Y), "pixels must lie in [0, 1], found -0.49"),
    "colour": (lambda: (X.expand(-1, 3, -1, -1), Y), "the network does not take images (16, 3, 8, 8)"),
    "small": (lambda: (X[..., :4, :4], Y), "the network does not take images (16, 1, 4, 4)"),
    "float labels": (lambda: (X, Y.float()), "labels are torch.float32 (16,); give one integer class id"),
    "one-hot": (lambda: (X, nn.functional.one_hot(Y, 10)), "labels are torch.int64 (16, 10); give one integer class"),
    "labels beyond": (lambda: (X, Y + 1), "labels run from 1 to 10, but the network has 10 classes"),
    "nothing": (list, "no images to"),
    "no image": (lambda: [(X[:0], Y[:0])], "expected images (B, C, H, W) and labels (B,), got (0, 1, 8, 8) and (0,)"),
    "NaN": (lambda: (X * torch.nan, Y), "pixels must lie in [0, 1], found nan to nan"),
    "a loader's": (lambda: DataLoader([{"x": x} for x in X], 8), "got a dict of 'x'; make it one"),
    "a loader of images": (lambda: DataLoader(X, 8), "a batch is a pair of tensors (images, labels), got a Tensor"),
}  # fmt: skip


@pytest.mark.parametrize("case", DATA)
@pytest.mark.parametrize("way", WAYS)
def test_data_that_is_refused(tmp_path, monkeypatch, way, case):
    monkeypatch.chdir(tmp_path)
    make, message = DATA[case]
    model, data = net().train(), make()
    with refused(message, model):
        WAYS[way](model, data)
    assert not list(tmp_path.iterdir())


def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))


def empty():
    with torch.device("meta"):
        return net()


NETWORKS = {
    "a tuple": (lambda: Returning(lambda logits: (logits, None)), "the network returns a tuple; wrap it in a module"),
    "a dict": (lambda: Returning(lambda logits: {"logits": logits}), "the network returns a dict; wrap it in a module"),
    "classes": (lambda: Returning(lambda logits: logits.argmax(1)), "expected logits (16, classes)"),
    "maps": (lambda: nn.Identity(), "the network returns torch."),
    "lazy": (lazy, "'1.weight' has no shape yet, as its layer is lazy; run the network once on some images"),
    "meta": (empty, "'0.weight' is on the meta device and has no values; call model.to_empty"),
    "a class": (lambda: nn.Flatten, "expected a network (torch.nn.Module), got the class Flatten"),
    "a view": (lambda: hp.MaskView(net()), "expected a network (torch.nn.Module), got a MaskView"),
    "a function": (lambda: net().forward, "expected a network (torch.nn.Module), got a method"),
}  # fmt: skip


@pytest.mark.parametrize("case", NETWORKS)
@pytest.mark.parametrize("way", WAYS)
def test_networks_that_are_refused(tmp_path, monkeypatch, way, case):
    monkeypatch.chdir(tmp_path)
    make, message = NETWORKS[case]
    with refused(message):
        WAYS[way](make(), (X, Y))


SETTINGS = {
    "threat 0.1": ({"threat": 0.1}, "threat is 0.1; give ThreatModel(...) or its settings by name"),
    "threat True": ({"threat": True}, "threat is True; give ThreatModel(...)"),
    "threat key": ({"threat": {"norm": "linf", "esp": 0.1}}, "threat: unknown key 'esp'; did you mean 'eps'?"),
    "threat eps": ({"threat": {"norm": "linf", "eps": True}}, "threat.eps: True is not a number"),
    "threat 8": ({"threat": {"norm": "linf", "eps": 8}}, "threat: eps 8 is above 1"),
    "threat class": ({"threat": hp.ThreatModel}, "threat is the class ThreatModel; call it: ThreatModel(...)"),
    "no threat": ({"threat": None}, "attack 'pgd-2x1' needs a threat model"),
    "attack class": ({"attacks": [hp.PGDAttack]}, "attacks[0]: PGD is a class; call it: PGD(...)"),
    "attack classes": ({"attacks": hp.AutoAttack}, "attacks[0]: AutoAttack is a class; call it: AutoAttack(...)"),
    "attack name": ({"attacks": [PGD, "pdg"]}, "attacks[1]: unknown attack 'pdg'; did you mean 'pgd'?"),
    "attack setting": ({"attacks": [{"kind": "pgd", "step": 2}]}, "attacks[0]: unknown key 'step'; did you mean"),
    "attack bool": ({"attacks": [{"kind": "pgd", "steps": True}]}, "attacks[0].steps: True is not a number"),
    "an objective": ({"attacks": [hp.PGD()]}, "attacks[0]: expected {kind: ...}, got PGD("),
    "a number": ({"attacks": 50}, "attacks[0]: expected {kind: ...}, got 50"),
    "twice": ({"attacks": [PGD, PGD]}, "two attacks are called 'pgd-2x1'; remove one"),
    "seed None": ({"seed": None}, "seed is None; give a whole number of at least 0"),
    "seed -1": ({"seed": -1}, "seed is -1; give a whole number of at least 0"),
    "seed 0.0": ({"seed": 0.0}, "seed is 0.0; give a whole number"),
    "seed True": ({"seed": True}, "seed is True; give a whole number"),
    "seed name": ({"seed": "0"}, "seed is '0'; give a whole number"),
    "samples": ({"attack_samples": {"pgd": 5}}, "attack_samples: no attack 'pgd' is run; did you mean 'pgd-2x1'?"),
}  # fmt: skip


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_are_refused(case):
    settings, message = SETTINGS[case]
    model = net().train()
    with refused(message, model):
        run(model, **settings)


CERTIFICATES = {
    "verify, number": (lambda m: hp.verify(m, (X, Y), 0.1), "threat is 0.1; give ThreatModel(...)"),
    "verify, norm": (lambda m: hp.verify(m, (X, Y), {"norm": "l2", "eps": 1}), "bounds hold for boxes"),
    "verify, method": (lambda m: hp.verify(m, (X, Y), THREAT, "crwn"), "method: unknown bound 'crwn'; did you mean"),
    "verify, half": (lambda m: hp.verify(m, (X, Y), THREAT, precision="float16"), "precision is 'float16'; proofs are"),
    "certify, pair": (lambda m: hp.certify(m, (X, Y), sigma=0.25), "expected images (B, C, H, W), got a tuple"),
    "certify, seed": (lambda m: hp.certify(m, X, sigma=0.25, seed=-1), "seed is -1; give a whole number"),
    "certify, bool": (lambda m: hp.certify(m, X, sigma=True), "Smoothing.sigma: True is not a number"),
    "certify, n": (lambda m: hp.certify(m, X, sigma=0.25, n=0.5), "Smoothing.n: Input should be a valid integer"),
    "certify, bytes": (lambda m: hp.certify(m, (X * 255).byte(), sigma=0.25), "write x.float() / 255 for bytes"),
}  # fmt: skip


@pytest.mark.parametrize("case", CERTIFICATES)
def test_certificates_that_are_refused(case):
    call, message = CERTIFICATES[case]
    model = net().train()
    with refused(message, model):
        call(model)


def test_the_forms_of_data_are_evaluated_alike(tmp_path):
    images = hp.load_data("digits").test.take(48)
    ours = images.batches(16, seed=0)
    x, y = (torch.cat(parts) for parts in zip(*ours.epoch(0), strict=True))
    forms = {
        "batches of ours": ours,
        "one pass": ours.epoch(0),
        "a list of batches": list(ours.epoch(0)),
        "tuples": [tuple(part) for part in ours.epoch(0)],
        "a generator of lists": ([x, y.int()] for x, y in ours.epoch(0)),
        "a DataLoader": DataLoader(TensorDataset(x, y), 16),
        "a DataLoader of float64": DataLoader(TensorDataset(x.double(), y), 16),
    }
    model = net()
    expected = run(model, list(ours.epoch(0)))
    for name, form in forms.items():
        assert equal(run(model, form), expected), name
    whole = run(model, [Batch(x, y)])
    for name, form in {"a split": images, "a batch": Batch(x, y), "a pair": (x, y), "a list of two": [x, y]}.items():
        assert equal(run(model, form), whole), name
    for way in (clean_accuracy, WAYS["verify"]):
        found = way(model, images)
        assert type(found) is type(way(model, ours))
    assert clean_accuracy(model, images) == clean_accuracy(model, ours) == whole.clean_accuracy
    certified = [
        smoothing.certify_dataset(model, form, SMOOTHING, str(tmp_path / f"{number}.jsonl"))
        for number, form in enumerate((images, ours, DataLoader(TensorDataset(x, y), 7)))
    ]
    assert len({tuple((record.prediction, record.radius) for record in records) for records in certified}) == 1


def test_the_forms_of_settings_are_evaluated_alike():
    model = net()
    expected = run(model, threat=hp.ThreatModel(eps=8 / 255), attacks=[hp.PGDAttack(steps=2, restarts=1)])
    assert equal(run(model), expected)
    assert equal(run(model, attacks=PGD), expected)
    assert equal(run(model, attacks=(hp.PGDAttack(steps=2, restarts=1),)), expected)
    several = run(model, attacks=["fgsm", PGD, hp.PGDAttack(steps=3, restarts=1)])
    assert list(several.survived) == ["fgsm", "pgd-2x1", "pgd-3x1"]
    assert list(run(model, attacks="fgsm").survived) == ["fgsm"]


def test_the_progress_of_batches_with_a_length_is_known():
    seen = []
    run(net(), DataLoader(TensorDataset(X, Y), 8), progress=lambda *step: seen.append(step))
    assert seen == [("clean", 1, 2), ("pgd-2x1", 1, 2), ("clean", 2, 2), ("pgd-2x1", 2, 2)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_is_judged_in_float32(dtype):
    """Rounded weights are the network; float32 and float64 hold them all."""
    model = net().to(dtype)
    wide = net().to(dtype).float()
    before = snapshot(model)
    assert equal(run(model), run(wide))
    assert equal(run(model, (X.to(dtype), Y)), run(wide, (X.to(dtype).float(), Y)))
    assert torch.equal(hp.certify(model, X[:2], sigma=0.25, n=50)[1], hp.certify(wide, X[:2], sigma=0.25, n=50)[1])
    proofs = [[record.margin for record in hp.verify(m, (X, Y), THREAT, "ibp").records] for m in (model, wide)]
    assert proofs[0] == proofs[1]
    assert 0 <= clean_accuracy(model, (X, Y)) <= 1
    threat = hp.ThreatModel(eps=0.1)
    assert [c.found for c in check(model, Batch(X, Y), threat, seed=0)] == [
        c.found for c in check(wide, Batch(X, Y), threat, seed=0)
    ]
    parts = [CorruptedBatch("fog", severity, Batch(X, Y)) for severity in (1, 2, 3, 4, 5)]
    assert corruption_accuracy(model, parts) == corruption_accuracy(wide, parts)
    assert unchanged(model, before)


def test_a_network_without_parameters_is_judged():
    model, data = nn.Sequential(nn.AvgPool2d(4), nn.Flatten()), (X, Y % 4)
    found = run(model, data)
    assert found.clean_accuracy == (model(X).argmax(1) == Y % 4).double().mean() == clean_accuracy(model, data)
    assert found.robust_accuracy["pgd-2x1"] <= found.clean_accuracy
    assert hp.verify(model, data, THREAT).summary.verified_accuracy <= found.robust_accuracy["pgd-2x1"]


@pytest.mark.parametrize("way", ["evaluate", "clean_accuracy", "verify"])
def test_another_shape_mid_way_is_refused(way):
    model = net()
    with refused("the network does not take images (16, 1, 4, 4)", model):
        WAYS[way](model, [(X, Y), (X[..., :4, :4], Y)])
