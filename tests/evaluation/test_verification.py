"""Verified accuracy against the bounds themselves, against attacks, and against kills."""

import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from attacks.trained import digits
from hydraprune.attacks.autoattack import AutoAttack
from hydraprune.attacks.pgd import PGD
from hydraprune.bounds import BOUNDS, margin_bounds
from hydraprune.core.errors import CheckpointError, DataError, EvaluationError, HydrapruneError, SpecError
from hydraprune.core.objective import Batch
from hydraprune.core.threat import ThreatModel
from hydraprune.evaluation import evaluate, verification, verify
from hydraprune.evaluation.verification import VerifiedImage, summary

METHODS = ["ibp", "crown-ibp", {"kind": "crown-ibp", "slope": "zero"}, "symbolic", "crown", "best"]
THREAT = ThreatModel(eps=0.03)


def data(images: int = 64, size: int = 64) -> list[Batch]:
    x, y = digits()[1]
    return [Batch(*pair) for pair in zip(x[:images].split(size), y[:images].split(size), strict=True)]


def timeless(records):
    return [r.model_copy(update={"seconds": 0.0, "margin": r.margin and round(r.margin, 9)}) for r in records]


# ---------------------------------------------------------------- what is proved


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("method", METHODS[:-1], ids=str)
def test_records_are_the_bounds(method, precision):
    net, dtype = digits()[0], getattr(torch, precision)
    (batch,) = data()
    x, y = batch
    found = verify(net, batch, THREAT, method, precision=precision)
    exact = verification.plain_copy(net).to(dtype)
    lower = margin_bounds(exact, x.to(dtype), y, THREAT, method).detach()
    least = lower.masked_fill(F.one_hot(y, 10).bool(), torch.inf).amin(1)
    prediction = net(x).argmax(1)
    assert [r.index for r in found.records] == list(range(64))
    assert [r.label for r in found.records] == y.tolist()
    assert [r.prediction for r in found.records] == prediction.tolist()
    for record, margin, row in zip(found.records, least.tolist(), lower, strict=True):
        if record.prediction != record.label:
            assert (record.verified, record.margin) == (False, None)
            continue
        assert record.margin == pytest.approx(margin, rel=1e-12 if precision == "float64" else 1e-4)
        assert record.tolerance == pytest.approx(1e-5 * (1 + row.abs().max().item()), rel=1e-4)
        assert record.verified is (record.margin > (0 if precision == "float64" else record.tolerance))
        assert record.seconds > 0
    figures = found.summary
    right = [r for r in found.records if r.prediction == r.label]
    assert 0 < sum(r.verified for r in right) < len(right) < 64
    assert (figures.samples, figures.precision) == (64, precision)
    assert figures.clean_accuracy == len(right) / 64
    assert figures.verified_accuracy == sum(r.verified for r in right) / 64
    assert figures.mean_margin == pytest.approx(sum(r.margin for r in right) / len(right))


def test_the_best_is_at_least_as_good_as_each_and_asks_the_dear_ones_about_the_undecided_only(monkeypatch):
    asked = []

    def noted(net, x, y, threat, method):
        asked.append((method.name, len(x)))
        return margin_bounds(net, x, y, threat, method)

    monkeypatch.setattr(verification, "margin_bounds", noted)
    net, batches = digits()[0], data()
    proved = {}
    for method in METHODS:
        asked.clear()
        found = verify(net, batches, THREAT, method)
        proved[str(method)] = {r.index for r in found.records if r.verified}
        assert asked[0][1] == sum(r.prediction == r.label for r in found.records)
    assert [name for name, _ in asked] == ["ibp", "crown-ibp", "crown-ibp-zero", "symbolic", "crown"]
    left = [count for _, count in asked]
    assert left == sorted(left, reverse=True)
    assert left[1] == left[0] - len(proved["ibp"])
    assert len(proved["ibp"]) < len(proved["crown"])
    assert proved["best"] >= set().union(*proved.values())


def test_the_best_margins_are_the_largest_of_each():
    net, (x, y) = digits()[0], data(8)[0]
    each = torch.stack([margin_bounds(net, x, y, THREAT, method) for method in METHODS[:-1]])
    assert torch.equal(margin_bounds(net, x, y, THREAT, "best"), each.amax(0))
    assert len({int(i) for i in each.argmax(0)[each[0] != 0]}) > 1
    lower, upper = BOUNDS.make("best", "").logits(net, THREAT.box(x))
    ends = [BOUNDS.make(method, "").logits(net, THREAT.box(x)) for method in METHODS[:-1]]
    assert torch.equal(lower, torch.stack([end.lower for end in ends]).amax(0))
    assert torch.equal(upper, torch.stack([end.upper for end in ends]).amin(0))


def scalar(gap: float) -> nn.Module:
    """One pixel t, two classes: margin t - 1/4 + gap of the first."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    net[1].weight.data = torch.tensor([[1.0], [0.0]])
    net[1].bias.data = torch.tensor([0.0, 0.25 - gap])
    return net


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_margin_of_zero_proves_nothing(method):
    image = Batch(torch.full((1, 1, 1, 1), 0.5), torch.zeros(1, dtype=torch.int64))
    threat = ThreatModel(eps=0.25)
    (record,) = verify(scalar(0), image, threat, method).records
    assert (record.prediction, record.verified, record.margin) == (0, False, 0.0)
    tiny = verify(scalar(2.0**-18), image, threat, method)
    assert (tiny.records[0].verified, tiny.records[0].margin) == (True, 2.0**-18)
    assert tiny.summary.close == 1
    single = verify(scalar(2.0**-18), image, threat, method, precision="float32")
    assert (single.records[0].verified, single.records[0].margin) == (False, 2.0**-18)
    assert verify(scalar(2.0**-10), image, threat, method, precision="float32").records[0].verified


def test_a_tie_is_not_verified():
    image = Batch(torch.full((1, 1, 1, 1), 0.25), torch.zeros(1, dtype=torch.int64))
    (record,) = verify(scalar(0), image, ThreatModel(eps=0)).records
    assert (record.prediction, record.verified) == (0, False)


def test_a_bound_that_overflows_proves_nothing():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3))
    for layer in (net[1], net[3]):
        layer.weight.data *= 1e20
    x = torch.rand(2, 1, 2, 2) * 1e-4
    y = net(x).argmax(1)
    found = verify(net, Batch(x, y), ThreatModel(eps=0.5), "ibp", precision="float32")
    assert [(r.verified, r.margin) for r in found.records] == [(False, None)] * 2
    assert found.summary.mean_margin is None


def test_a_summary_by_hand():
    base = {"label": 1, "seconds": 0.1, "network": "n", "made": "m", "image": "i"}
    records = [
        VerifiedImage(index=0, prediction=1, verified=True, margin=2.0, tolerance=0.5, **base),
        VerifiedImage(index=1, prediction=1, verified=False, margin=-0.25, tolerance=0.25, **base),
        VerifiedImage(index=2, prediction=0, verified=False, **base),
        VerifiedImage(index=3, prediction=1, verified=True, margin=0.25, tolerance=0.125, **base),
    ]
    assert json.loads(json.dumps(summary(records, "float32").plain())) == {
        "samples": 4, "precision": "float32", "clean_accuracy": 0.75, "verified_accuracy": 0.5,
        "mean_margin": 2 / 3, "close": 1,
    }  # fmt: skip


# ---------------------------------------------------------------- against attacks


def interval_trained() -> nn.Module:
    """A small network trained with IBP for a second, so that many images are verified at a radius that attacks use."""
    net = nn.Sequential(
        nn.Conv2d(1, 6, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 32), nn.ReLU(), nn.Linear(32, 10)
    )
    x, y = digits()[1]
    rows = torch.arange(128, 256)
    optimizer, bound = torch.optim.Adam(net.parameters(), lr=0.01), BOUNDS.make("ibp", "")
    for step in range(150):
        box = ThreatModel(eps=0.12 * min(1, step / 100)).box(x[rows])
        optimizer.zero_grad()
        F.cross_entropy(-bound.margins(net, box, y[rows]), y[rows]).backward()
        optimizer.step()
    return net


def test_no_attack_breaks_what_is_verified():
    net, threat = interval_trained(), ThreatModel(eps=0.1)
    batches = data(128, 128)
    attacks = [PGD(steps=50, restarts=10), AutoAttack()]
    attacked = evaluate(net, batches, threat=threat, attacks=attacks, seed=0)
    verified = {m: torch.tensor([r.verified for r in verify(net, batches, threat, m).records]) for m in ("ibp", "best")}
    for proved in verified.values():
        for survived in attacked.survived.values():
            assert (survived | ~proved).all()
        assert 0.1 < proved.double().mean() <= attacked.robust_accuracy["autoattack"]
    # Attacks do break images here, but for the verified ones.
    assert attacked.robust_accuracy["autoattack"] < attacked.clean_accuracy - 0.05
    # Nor is the proof far from what can be broken.
    assert verified["best"].double().mean() > 0.5 * attacked.robust_accuracy["autoattack"]


def test_other_weights_have_other_margins():
    net, batches = digits()[0], data(16)
    before = verify(net, batches, THREAT, "crown")
    other = verification.plain_copy(net)
    weight = other[6].weight.data
    weight[3] += 0.05
    after = verify(other, batches, THREAT, "crown")
    assert [r.margin for r in before.records] != [r.margin for r in after.records]
    assert before.summary.mean_margin != pytest.approx(after.summary.mean_margin, abs=1e-3)


# ---------------------------------------------------------------- what must not matter


class Scores(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.score = nn.Parameter(torch.rand_like(weight))

    def forward(self, weight):
        return weight * (self.score > 0.5)


def test_the_model_keeps_modes_gradients_buffers_and_random_numbers(tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.9), nn.Flatten(), nn.Linear(144, 3)).train()
    parametrize.register_parametrization(net[0], "weight", Scores(net[0].weight))
    x = torch.rand(2, 1, 8, 8)
    net(x).sum().backward()
    net[1].eval()
    modes = [m.training for m in net.modules()]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    gradients = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    noise, products = torch.get_rng_state(), torch.backends.cuda.matmul.fp32_precision
    with torch.autocast("cpu", torch.bfloat16):
        dim = verify(net, Batch(x, torch.tensor([0, 1])), THREAT, precision="float32", path=tmp_path / "v.jsonl")
    assert modes == [m.training for m in net.modules()]
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    kept = [p.grad for p in net.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(gradients, kept, strict=True))
    assert all(p.requires_grad for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), noise)
    assert torch.is_grad_enabled()
    assert torch.backends.cuda.matmul.fp32_precision == products
    # Autocast, dropout and the mode of batch norm made no difference.
    plain = verification.plain_copy(net).eval()
    bright = verify(plain, Batch(x, torch.tensor([0, 1])), THREAT, precision="float32")
    assert [r.margin for r in dim.records] == [r.margin for r in bright.records]


def test_bounds_are_exact_under_autocast_and_with_faster_products():
    net, (x, y) = digits()[0], data(4)[0]
    before = margin_bounds(net, x, y, THREAT)
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # alone, which the older switch for TF32 does not bear
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(margin_bounds(net, x, y, THREAT), before)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.conv.fp32_precision = "tf32"


def test_company_does_not_matter():
    net = digits()[0]
    together = timeless(verify(net, data(), THREAT).records)
    assert timeless(verify(net, iter(data(size=5)), THREAT).records) == together


# ---------------------------------------------------------------- the file


def test_the_lines_of_the_file_are_the_records(tmp_path):
    net, seen, path = digits()[0], [], tmp_path / "new" / "verified.jsonl"
    found = verify(net, iter(data(20, 8)), THREAT, path=path, progress=seen.append)
    assert seen == found.records
    assert [VerifiedImage.model_validate_json(line) for line in path.read_text().splitlines()] == found.records
    assert len({r.image for r in seen}) == 20


def refuse(*arguments):
    raise AssertionError("nothing is left to do")


@pytest.mark.parametrize("lines", [0, 1, 4, 5, 11, 12])
@pytest.mark.parametrize("cut", [0, 1, 30, -1])
def test_goes_on_after_a_kill_at_any_place(tmp_path, monkeypatch, lines, cut):
    net, path = digits()[0], tmp_path / "v.jsonl"
    full = verify(net, data(12, 5), THREAT, "crown", path=tmp_path / "full.jsonl").records
    content = (tmp_path / "full.jsonl").read_bytes().splitlines(keepends=True)
    rest = content[lines][:cut] if lines < 12 and cut else b""
    path.write_bytes(b"".join(content[:lines]) + rest)
    if lines == 12:
        monkeypatch.setattr(verification, "margin_bounds", refuse)
    again = verify(net, data(12, 7), THREAT, "crown", path=path).records
    assert timeless(again) == timeless(full)
    assert again[:lines] == full[:lines]
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == list(range(12))


def test_never_mixes_records_of_different_runs(tmp_path):
    net, path = digits()[0], tmp_path / "v.jsonl"
    verify(net, data(2), THREAT, "crown", path=path)
    content = path.read_bytes()
    other, smooth = verification.plain_copy(net), verification.plain_copy(net)
    other[6].weight.data[0, 0] += 1e-6
    smooth[4] = nn.LeakyReLU()
    x, y = data(2)[0]
    settings = {"model": net, "data": Batch(x, y), "threat": THREAT, "method": "crown", "path": path}
    for change in (
        {"model": other},
        {"model": smooth},
        {"threat": ThreatModel(eps=0.02)},
        {"method": {"kind": "crown", "slope": "zero"}},
        {"method": "best"},
        {"precision": "float32"},
        {"data": Batch(x.flip(3), y)},
        {"data": Batch(x, (y + 1) % 10)},
    ):
        with pytest.raises(CheckpointError, match="image 0 was certified for another"):
            verify(**settings | change)
    assert path.read_bytes() == content
    verify(**settings | {"method": {"kind": "crown", "chunk": 7}})  # memory is no setting of a proof


@pytest.mark.parametrize("content", ["{}\n", '{"index": 0, "radius": 1}\n', "notes without a newline"])
def test_touches_no_file_of_another_kind(tmp_path, content):
    path = tmp_path / "notes"
    path.write_text(content)
    with pytest.raises(CheckpointError, match="notes"):
        verify(digits()[0], data(2), THREAT, path=path)
    assert path.read_text() == content


# ---------------------------------------------------------------- refusals


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 2)

    def forward(self, x):
        return self.fc(x.flatten(1)) if x.sum() > 0 else self.fc(-x.flatten(1))


def flat(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, 2))


def broken() -> nn.Module:
    net = flat()
    net[1].bias.data.fill_(math.nan)
    return net


@pytest.mark.parametrize(
    ("net", "pixel", "label", "threat", "kind", "message"),
    [
        (flat(), 2.0, 0, THREAT, DataError, r"pixels must lie in \[0, 1\]"),
        (flat(), math.nan, 0, THREAT, DataError, r"pixels must lie in \[0, 1\]"),
        (flat(), 0.5, 2, THREAT, DataError, "labels run from 2 to 2, but the network has 2 classes"),
        (flat(), 0.5, -1, THREAT, DataError, "labels run from -1"),
        (broken(), 0.5, 0, THREAT, EvaluationError, "NaN or infinite"),
        (flat(), 0.5, None, ThreatModel(norm="l2", eps=1), SpecError, "not for the norm 'l2'"),
        (flat(nn.GELU()), 0.5, None, THREAT, SpecError, r"1 \(GELU\): this layer has no bounds"),
        (Branching(), 0.5, None, THREAT, SpecError, "Branching cannot be traced"),
    ],
)
def test_refuses_before_anything_is_written(tmp_path, net, pixel, label, threat, kind, message):
    assert issubclass(kind, HydrapruneError)
    x = torch.full((2, 1, 8, 8), pixel)
    y = net(x).argmax(1) if label is None else torch.full((2,), label)
    with pytest.raises(kind, match=message):
        verify(net, [Batch(x, y)], threat, path=tmp_path / "v.jsonl")
    assert not (tmp_path / "v.jsonl").exists()


def test_refuses_no_images_unknown_methods_and_bad_radii(tmp_path):
    with pytest.raises(EvaluationError, match="no images to verify"):
        verify(flat(), [], THREAT)
    with pytest.raises(SpecError, match="unknown bound 'crwn'; did you mean 'crown'"):
        verify(flat(), data(2), THREAT, "crwn")
    with pytest.raises(SpecError, match="eps"):
        ThreatModel(eps=-0.1)
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match=r"cannot write .*run the same call again"):
        verify(digits()[0], data(2), THREAT, path=tmp_path / "file" / "v.jsonl")
