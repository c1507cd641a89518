"""Every format with every structure and budget: what is read back is what was written."""

import pytest
import torch
from torch import nn

import hydraprune as hp
from hydraprune.core.errors import PruningError, SpecError
from hydraprune.deploy import FORMATS, probe
from hydraprune.deploy.opened import opened
from hydraprune.masks import BUDGETS, STRUCTURES
from hydraprune.runs.checkpoint import open_checkpoint, save
from hydraprune.runs.meta import Meta

DATA = {"onnx-int8", "vnncomp"}
"""Formats that ask for images; they have tests of their own."""
FORMS = [name for name in FORMATS.names() if name not in DATA]


class Everything(nn.Module):
    """Convolutions of every kind, a shared layer, norms, a residual sum, concatenation, odd shapes."""

    def __init__(self, num_classes: int = 10, in_channels: int = 1, image_size: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.grouped = nn.Conv2d(12, 8, 3, groups=4, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, padding=1)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.down = nn.Conv2d(6, 8, 2, stride=2)
        self.shared = nn.Conv2d(8, 8, 1, bias=False)
        self.last = nn.Linear(16 * 4, num_classes)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.depthwise(self.grouped(x)))
        y = torch.relu(self.down(torch.relu(self.up(x))))
        x = self.shared(torch.relu(self.shared(x + y)))
        return self.last(torch.cat([nn.functional.avg_pool2d(z, 4) for z in (x, y)], 1).flatten(1))


@pytest.fixture(autouse=True)
def _one_process(monkeypatch):
    """The other process, which every format's own tests have, takes seconds."""
    answers = probe.answers
    monkeypatch.setattr(probe, "elsewhere", lambda artifact, images, *_: answers(opened(artifact, True), images))


def checkpoint(folder, structure, budget):
    torch.manual_seed(0)
    net = hp.Net(kind=f"{__name__}:Everything")
    model = Everything()
    model(torch.rand(32, 1, 8, 8))
    batch = hp.Batch(torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.long))
    probing = hp.Probe(torch.Generator(), batches=lambda: [batch])
    view = hp.MaskView(model, ["last"] if structure != "coupled" else [])
    hp.prune(view, "magnitude", None if structure == "n:m" else {"kind": budget, "sparsity": 0.6}, structure, probing)
    hp.MaskView(model).freeze()
    save(folder, model, Meta(net=net, num_classes=10, in_channels=1, image_size=8))
    return open_checkpoint(folder, trust_code=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("structure", STRUCTURES.names())
def test_a_round_trip_of_every_structure(tmp_path, monkeypatch, structure, form):
    round_trip(tmp_path, structure, "uniform", form)


@pytest.mark.parametrize("budget", [name for name in BUDGETS.names() if name not in ("uniform", "table")])
def test_a_round_trip_of_every_budget(tmp_path, budget):
    for form in ("packed", "dense", "onnx"):
        round_trip(tmp_path / form, "weight", budget, form)


def round_trip(folder, structure, budget, form):
    source = checkpoint(folder / "net", structure, budget)
    out = folder / f"out{FORMATS.get(form).suffix}"
    served = {"shrunk": ("filter", "channel", "coupled"), "n:m": ("n:m",)}
    if structure not in served.get(form, (structure,)):
        with pytest.raises((SpecError, PruningError), match="packed, dense or onnx"):
            hp.export(folder / "net", out, form, trust_code=True)
        assert not out.exists()
        return
    manifest = hp.export(folder / "net", out, form, trust_code=True)
    assert manifest.difference <= 1e-4 * manifest.logit
    x = torch.rand(9, 1, 8, 8)
    with torch.no_grad():
        expected = source.network().eval()(x)
        assert torch.allclose(opened(out, True)(x), expected, atol=1e-4 * float(expected.abs().max()))
    if form in ("packed", "hub"):
        again = open_checkpoint(out, True)
        assert again.masks.keys() == source.masks.keys()
        assert all(torch.equal(mask, again.masks[name]) for name, mask in source.masks.items())
        assert all(torch.equal(value, again.values[name]) for name, value in source.values.items())
