"""Certificates against golden tables and a smoothed network whose radius is known; the file against kills."""

import csv
import json
import math

import pytest
import torch
from scipy.stats import binom
from torch import nn
from torch.nn.utils import parametrize

from attacks.trained import digits
from hydraprune.core.errors import CheckpointError, DataError, EvaluationError, HydrapruneError, SpecError
from hydraprune.core.objective import Batch
from hydraprune.evaluation import smoothing as module
from hydraprune.evaluation.smoothing import (
    ABSTAIN,
    CertifiedImage,
    Smoothing,
    average_certified_radius,
    certificate,
    certified_accuracy,
    certify,
    certify_dataset,
    clopper_pearson,
    decision,
    predict,
    summary,
)

SHORT = Smoothing(sigma=0.25, n0=20, n=200)


def plane(inputs: int = 12) -> nn.Module:
    """Class 1 on one side of a plane through the middle of the pixel range, class 0 on the other."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(inputs, 2))
    w = torch.randn(inputs, generator=torch.Generator().manual_seed(1))
    net[1].weight.data = torch.stack([-w, w])
    net[1].bias.data = torch.stack([w.sum() / 2, -w.sum() / 2])
    return net


def distance(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """(B,) signed distance to that plane, in float64."""
    w = net[1].weight[1].double()
    return (x.double().flatten(1) - 0.5) @ w / w.norm()


def record(**changes) -> CertifiedImage:
    base = {
        "index": 0,
        "label": 1,
        "prediction": 1,
        "radius": 0.5,
        "counts": (1, 9),
        "seconds": 0.1,
        "network": "n",
        "made": "m",
        "image": "i",
    }
    return CertifiedImage(**base | changes)


# ---------------------------------------------------------------- numbers


def test_bounds_and_radii_are_those_of_the_table(golden):
    rows = list(csv.DictReader((golden / "bounds" / "smoothing_certify.csv").read_text().splitlines()))
    assert len(rows) > 800
    for row in rows:
        hits, n, alpha, sigma = int(row["n_a"]), int(row["n"]), float(row["alpha"]), float(row["sigma"])
        assert clopper_pearson(hits, n, alpha) == pytest.approx(float(row["p_a_lower"]), rel=1e-9, abs=1e-9)
        label, radius = certificate(torch.tensor([1, 5]), torch.tensor([n - hits, hits]), sigma, alpha)
        assert label == (ABSTAIN if row["abstain"] == "1" else 1)
        assert radius == pytest.approx(float(row["radius"]), rel=1e-9, abs=1e-9)


def test_decisions_are_those_of_the_cases(golden):
    cases = json.loads((golden / "bounds" / "smoothing_cases.json").read_text())
    for case in cases["certify"]:
        counts = torch.tensor(case["selection"]), torch.tensor(case["estimation"])
        label, radius = certificate(*counts, case["sigma"], case["alpha"])
        assert label == case["expect"]["class_out"]
        assert radius == pytest.approx(case["expect"]["radius"], abs=1e-9)
    for case in cases["predict"]:
        label, p_value = decision(torch.tensor(case["counts"]), case["alpha"])
        assert p_value == pytest.approx(case["expect"]["p_value"], rel=1e-9, abs=1e-300)
        top = case["counts"].index(max(case["counts"]))
        assert label == (ABSTAIN if case["expect"]["abstain"] else top)


def test_figures_are_those_of_the_cases(golden):
    case = json.loads((golden / "bounds" / "smoothing_cases.json").read_text())["aggregate"]
    records = [record(label=r["label"], prediction=r["predict"], radius=r["radius"]) for r in case["records"]]
    found = summary(records, SHORT, [float(r) for r in case["certified_accuracy"]])
    assert found["certified_accuracy"] == {float(r): v for r, v in case["certified_accuracy"].items()}
    assert found["abstention_rate"] == pytest.approx(case["abstain_rate"], abs=1e-12)
    assert found["clean_accuracy"] == pytest.approx(case["clean_accuracy"], abs=1e-12)
    assert found["average_certified_radius"] == pytest.approx(case["average_certified_radius"], abs=1e-12)


def test_a_summary_by_hand():
    records = [record(), record(radius=0.25), record(prediction=0, radius=2.0), record(prediction=ABSTAIN, radius=0)]
    assert certified_accuracy(records, [0, 0.25, 0.3, 0.6]) == {0: 0.5, 0.25: 0.5, 0.3: 0.25, 0.6: 0}
    assert average_certified_radius(records) == 0.75 / 4
    found = summary(records, Smoothing(sigma=0.5, n=1000, precision="bf16"), [0.3])
    assert json.loads(json.dumps(found)) == {
        "samples": 4, "sigma": 0.5, "n0": 100, "n": 1000, "alpha": 0.001, "precision": "bf16", "clean_accuracy": 0.5,
        "certified_accuracy": {"0.3": 0.25}, "average_certified_radius": 0.1875, "abstention_rate": 0.25,
    }  # fmt: skip


def test_near_one_nothing_is_lost_to_single_precision():
    counts = torch.tensor([0, 10_000_000_019])
    bound = clopper_pearson(int(counts[1]), int(counts[1]), 0.001)
    assert bound == pytest.approx(math.exp(math.log(0.001) / 10_000_000_019), rel=1e-15)
    assert torch.tensor(bound, dtype=torch.float32) == 1
    label, radius = certificate(counts, counts, 1.0, 0.001)
    assert label == 1
    assert 6.0 < radius < 6.5
    found = certify(plane(), torch.full((1, 1, 3, 4), 0.5) + 0.5 * plane()[1].weight[1].sign().view(1, 3, 4), SHORT)
    assert (found.label.dtype, found.radius.dtype, found.counts.dtype) == (torch.int64, torch.float64, torch.int64)
    assert found.counts.tolist() == [[0, 200]]
    assert found.radius.item() == certificate(*[torch.tensor([0, 200])] * 2, 0.25, 0.001)[1]


# ---------------------------------------------------------------- a network whose radius is known


def test_certified_radii_of_a_plane_are_wrong_as_often_as_alpha_allows():
    net, alpha = plane(), 0.2
    x = torch.rand(400, 1, 3, 4, generator=torch.Generator().manual_seed(2)) * 0.3 + 0.35
    found = certify(net, x, Smoothing(sigma=0.25, n0=20, n=400, alpha=alpha))
    truth = distance(net, x)
    says = found.label != ABSTAIN
    wrong = says & ((found.label != (truth > 0)) | (found.radius > truth.abs()))
    # Not fewer than half of alpha either, or the bound would be needlessly loose.
    assert binom.ppf(1e-6, 400, alpha / 2) <= wrong.sum() <= binom.ppf(1 - 1e-6, 400, alpha)
    assert (says & ~wrong).sum() > 200
    assert (found.radius[~says] == 0).all()
    cautious = certify(net, x[:100], Smoothing(sigma=0.25, n0=20, n=400, alpha=1e-9))
    assert (cautious.radius <= truth[:100].abs()).all()


def test_predict_names_the_side_or_abstains_on_the_plane():
    net, x = plane(), torch.full((3, 1, 3, 4), 0.5)
    w = net[1].weight[1].detach().view(1, 3, 4)
    x = x + 0.3 * torch.tensor([1.0, 0.0, -1.0]).view(-1, 1, 1, 1) * w / w.norm()
    assert predict(net, x, SHORT).tolist() == [1, ABSTAIN, 0]
    assert predict(net, x, SHORT, seed=1).dtype == torch.int64


class Noting(nn.Module):
    """Notes the images that it is given, and how; copies of it note to the same place."""

    seen: list[torch.Tensor] = []
    how: list[object] = []

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x):
        if isinstance(x, torch.Tensor):
            logits = self.net(x)
            Noting.seen.append(x)
            Noting.how.append((logits.dtype, self.training, torch.is_grad_enabled(), precisions()))
            return logits
        raise TypeError("no symbolic tracing")


def precisions():
    backends = torch.backends
    return [p.fp32_precision for p in (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul)]


@pytest.fixture
def noting():
    Noting.seen, Noting.how = [], []
    return Noting(plane(3 * 32 * 32))


def test_every_draw_is_new_and_unclipped(noting):
    x = torch.rand(2, 3, 32, 32)
    certify(noting, x, Smoothing(sigma=0.5, n0=30, n=70, batch_size=32))
    tries, noisy = Noting.seen[:2], torch.cat(Noting.seen[2:])
    assert [len(part) for part in tries] == [1, 2]
    assert len(noisy) == 2 * (30 + 70)
    assert max(len(part) for part in Noting.seen) == 32
    assert len(noisy.flatten(1).unique(dim=0)) == 200
    for image, copies in zip(x, noisy.split(100), strict=True):
        noise = (copies - image) / 0.5
        assert abs(noise.mean()) < 0.01
        assert abs(noise.std() - 1) < 0.01
    assert noisy.min() < -0.5
    assert noisy.max() > 1.5


# ---------------------------------------------------------------- what must not matter


def test_neither_batch_size_nor_company_changes_a_certificate(monkeypatch):
    # 75 is no multiple of 16: on a CPU, torch would draw other numbers in other portions.
    net, x = plane(75), torch.rand(4, 3, 5, 5) * 0.2 + 0.4
    monkeypatch.setattr(module, "_BLOCK", 75 * 90)  # blocks of 90 draws
    base = certify(net, x, SHORT)
    assert (base.counts.sum(1) == SHORT.n).all()
    for size in (1, 33, 90, 1000):
        again = certify(net, x, SHORT.model_copy(update={"batch_size": size}))
        assert torch.equal(base.counts, again.counts)
        assert torch.equal(base.radius, again.radius)
    alone = certify(net, x[:1], SHORT)
    assert torch.equal(alone.counts, base.counts[:1])
    assert not torch.equal(certify(net, x, SHORT, seed=1).counts, base.counts)
    assert not torch.equal(*certify(net, x[:1].expand(2, -1, -1, -1), SHORT).counts)


def test_float32_is_float32_and_bf16_is_asked_for(noting):
    x = torch.rand(1, 3, 32, 32)
    torch.set_float32_matmul_precision("medium")
    before = precisions()
    try:
        with torch.autocast("cpu", torch.bfloat16):
            exact = certify(noting, x, SHORT)
        assert {how[0] for how in Noting.how} == {torch.float32}
        assert all(how[1:] == (False, False, ["ieee"] * 3) for how in Noting.how)
        assert precisions() == before
        assert torch.get_float32_matmul_precision() == "medium"
        Noting.how = []
        fast = certify(noting, x, SHORT.model_copy(update={"precision": "bf16"}))
        assert {how[0] for how in Noting.how} == {torch.bfloat16}
        with pytest.raises(EvaluationError):
            certify(noting, x * 0, SHORT.model_copy(update={"sigma": 1e38}))
        assert precisions() == before
    finally:
        torch.set_float32_matmul_precision("highest")
    assert (exact.counts - fast.counts).abs().max() <= 4


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
    noise = torch.get_rng_state()
    certify(net, x, SHORT)
    predict(net, x, SHORT)
    certify_dataset(net, [Batch(x, torch.tensor([0, 1]))], SHORT, tmp_path / "c.jsonl")
    assert modes == [m.training for m in net.modules()]
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    kept = [p.grad for p in net.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(gradients, kept, strict=True))
    assert all(p.requires_grad for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), noise)
    assert torch.is_grad_enabled()


# ---------------------------------------------------------------- the file


def data(size: int = 5, images: int = 5) -> list[Batch]:
    x, y = digits()[1]
    return [Batch(*pair) for pair in zip(x[:images].split(size), y[:images].split(size), strict=True)]


def timeless(records):
    return [r.model_copy(update={"seconds": 0.0}) for r in records]


def test_records_are_the_certificates_and_the_lines_of_the_file(tmp_path):
    net, seen = digits()[0], []
    path = tmp_path / "new" / "certificates.jsonl"
    records = certify_dataset(net, iter(data(2)), SHORT, path, progress=seen.append)
    assert seen == records
    assert [CertifiedImage.model_validate_json(line) for line in path.read_text().splitlines()] == records
    x, y = data()[0]
    found = certify(net, x, SHORT)
    assert [r.index for r in records] == list(range(5))
    assert [r.label for r in records] == y.tolist()
    assert [r.prediction for r in records] == found.label.tolist()
    assert [r.radius for r in records] == found.radius.tolist()
    assert [list(r.counts) for r in records] == found.counts.tolist()
    assert len({r.image for r in records}) == 5


def test_every_kth_image_keeps_its_index_and_its_noise(tmp_path):
    net = digits()[0]
    full = timeless(certify_dataset(net, data(), SHORT, tmp_path / "full.jsonl"))
    for size in (1, 2, 3, 5):
        path = tmp_path / f"{size}.jsonl"
        some = certify_dataset(net, data(size), SHORT.model_copy(update={"every": 2}), path)
        assert timeless(some) == full[::2]
    more = certify_dataset(net, data(), SHORT, path)  # the file of every second image, continued
    assert timeless(more) == full
    assert len(path.read_text().splitlines()) == 5


@pytest.mark.parametrize("lines", range(6))
def test_goes_on_after_a_kill_at_any_line(tmp_path, lines):
    net, path = digits()[0], tmp_path / "c.jsonl"
    full = timeless(certify_dataset(net, data(), SHORT, tmp_path / "full.jsonl"))

    def kill(record):
        if record.index == lines - 1:
            raise KeyboardInterrupt

    if lines:
        with pytest.raises(KeyboardInterrupt):
            certify_dataset(net, data(2), SHORT, path, progress=kill)
    before = path.read_bytes() if lines else b""
    assert before.count(b"\n") == lines
    torch.manual_seed(99)
    again = certify_dataset(net, data(3), SHORT.model_copy(update={"batch_size": 64}), path)
    assert timeless(again) == full
    assert path.read_bytes().startswith(before)
    assert path.read_bytes().count(b"\n") == 5


@pytest.mark.parametrize("cut", [1, 12, -40, -1])
def test_a_line_cut_off_by_the_kill_is_written_anew(tmp_path, cut):
    net, path = digits()[0], tmp_path / "c.jsonl"
    full = certify_dataset(net, data(), SHORT, path)
    lines = path.read_bytes().splitlines(keepends=True)
    kept = b"".join(lines[:3])
    path.write_bytes(kept + lines[3][:cut])
    again = certify_dataset(net, data(), SHORT, path)
    assert timeless(again) == timeless(full)
    assert path.read_bytes().startswith(kept)
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == list(range(5))


def test_never_mixes_records_of_different_runs(tmp_path):
    net, path = digits()[0], tmp_path / "c.jsonl"
    certify_dataset(net, data(images=2), SHORT, path)
    content = path.read_bytes()
    other = nn.Sequential(*net)
    other[6] = nn.Linear(64, 10)
    x, y = data()[0]
    faster = SHORT.model_copy(update={"precision": "bf16"})
    for change in (
        lambda: certify_dataset(other, data(), SHORT, path),
        lambda: certify_dataset(net, data(), SHORT, path, seed=1),
        lambda: certify_dataset(net, data(), faster, path),
        lambda: certify_dataset(net, [Batch(x.flip(3), y)], SHORT, path),
        lambda: certify_dataset(net, [Batch(x, (y + 1) % 10)], SHORT, path),
    ):
        with pytest.raises(CheckpointError, match="image 0 was certified for another"):
            change()
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", ["{}\n", "accuracy 0.5\n", '{"index": 0}\n', "notes without a newline"])
def test_touches_no_file_of_another_kind(tmp_path, content):
    path = tmp_path / "notes"
    path.write_text(content)
    with pytest.raises(CheckpointError, match="notes"):
        certify_dataset(digits()[0], data(), SHORT, path)
    assert path.read_text() == content


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": 0}, "Smoothing.sigma: Input should be greater than 0"),
        ({"sigma": -0.25}, "Smoothing.sigma"),
        ({"sigma": 0.25, "alpha": 0}, "Smoothing.alpha: Input should be greater than 0"),
        ({"sigma": 0.25, "alpha": 1}, "Smoothing.alpha: Input should be less than 1"),
        ({"sigma": 0.25, "n": 0}, "Smoothing.n: Input should be greater than or equal to 1"),
        ({"sigma": 0.25, "n0": 0}, "Smoothing.n0"),
        ({"sigma": 0.25, "batch_size": 0}, "Smoothing.batch_size"),
        ({"sigma": 0.25, "every": 0}, "Smoothing.every"),
        ({"sigma": 0.25, "precision": "fp8"}, "Smoothing.precision"),
    ],
)
def test_refuses_bad_settings(settings, message):
    with pytest.raises(SpecError, match=message):
        Smoothing(**settings)


class Root(nn.Module):
    """NaN for what only noise can make of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.net = plane(64)

    def forward(self, x):
        return self.net(x.sqrt())


def broken() -> nn.Module:
    net = plane(64)
    net[1].bias.data.fill_(float("nan"))
    return net


@pytest.mark.parametrize(
    ("net", "x", "y", "kind", "message"),
    [
        (plane(64), 2.0, 0, DataError, r"pixels must lie in \[0, 1\]"),
        (plane(64), -0.1, 0, DataError, r"pixels must lie in \[0, 1\]"),
        (plane(64), 0.5, 2, DataError, "labels run from 2 to 2, but the network has 2 classes"),
        (plane(64), 0.5, -1, DataError, "labels run from -1"),
        (broken(), 0.5, 0, EvaluationError, "NaN or infinite"),
        (Root(), 0.5, 0, EvaluationError, "NaN or infinite logits for noisy images"),
    ],
)
def test_refuses_before_anything_is_written(tmp_path, net, x, y, kind, message):
    assert issubclass(kind, HydrapruneError)
    x, y = torch.full((2, 1, 8, 8), x), torch.full((2,), y)
    path = tmp_path / "c.jsonl"
    with pytest.raises(kind, match=message):
        certify_dataset(net, [Batch(x, y)], SHORT, path)
    assert not path.exists()
    if "labels" not in message:
        for function in (certify, predict):
            with pytest.raises(kind, match=message):
                function(net, x, SHORT)


def test_refuses_no_images_and_a_single_one_without_its_batch(tmp_path):
    with pytest.raises(EvaluationError, match="no images"):
        certify_dataset(plane(), [], SHORT, tmp_path / "c.jsonl")
    with pytest.raises(DataError, match=r"expected images \(B, C, H, W\)"):
        certify(plane(), torch.rand(1, 3, 4), SHORT)


def test_says_so_when_the_disk_refuses(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match=r"cannot write .*run the same call again"):
        certify_dataset(digits()[0], data(), SHORT, tmp_path / "file" / "c.jsonl")
