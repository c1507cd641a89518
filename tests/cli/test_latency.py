"""`hydraprune latency`, as its users call it."""

import pytest
import torch

import hydraprune as hp
from hydraprune.core.errors import SpecError
from hydraprune.nets import Net
from hydraprune.runs.checkpoint import save
from hydraprune.runs.latency import read_latency
from hydraprune.runs.meta import Meta


@pytest.fixture
def net(tmp_path):
    torch.manual_seed(0)
    kind = Net(kind="cnn_medium")
    model = kind.build(10, 1, 8)
    hp.prune(model, "magnitude", hp.ERK(sparsity=0.9))
    hp.MaskView(model).freeze()
    meta = Meta(net=kind, num_classes=10, in_channels=1, image_size=8, pruner="magnitude")
    save(tmp_path / "net", model, meta)
    return tmp_path / "net"


def test_a_table_and_a_file(command, net):
    code, out, err = command("latency", "net", "--batch", "1,2", "--threads", "1", "--repeats", "2")
    assert (code, err) == (0, "")
    assert "checkpoint" in out
    assert "written to" in out
    found = read_latency(net / "export" / "latency.json")
    assert [(t.runtime, t.batch) for t in found.artifacts[0].times] == [("torch", 1), ("torch", 2)]
    code, out, _ = command("latency", "net", "--batch", "1", "--threads", "1", "--repeats", "1", "--out", "here.json")
    assert (code, read_latency(net.parent / "here.json").repeats) == (0, 1)


def test_what_lies_beside_exports_is_passed_over(command, net):
    hp.export(net)
    hp.export(net, format="dense")
    everything = [str(path) for path in sorted((net / "export").iterdir())]  # as `export/*` gives it
    assert len(everything) == 6
    code, _, err = command("latency", *everything, "--batch", "1", "--threads", "1", "--repeats", "1")
    assert (code, err) == (0, "")
    found = read_latency(net / "export" / "latency.json")
    assert [timings.artifact for timings in found.artifacts] == ["dense.safetensors", "packed-float32.hpk"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "there is nothing to time"),
        (["nowhere"], "there is no nowhere"),
        (["net", "--batch", "0"], "batch is 0"),
        (["net", "--batch", "many"], "--batch is 'many'; write whole numbers"),
        (["net", "--repeats", "0"], "repeats is 0"),
        (["net", "--runtimes", "tensorrt"], "unknown runtime 'tensorrt'"),
        (["net", "--shape", "3,32"], "--shape is '3,32'; write it as C,H,W"),
        (["net", "--out", "net"], "is a folder"),
        (["net", "--out", "net/a.png"], "where the picture would replace the figures; give a .json file"),
    ],
)
def test_what_is_refused_in_one_line(command, net, arguments, words):
    code, _, err = command("latency", *arguments)
    assert code == 2
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("settings", [{"batch": 4}, {"threads": 1}, {"runtimes": "torch"}, {"artifact": ["net"]}])
def test_one_where_several_are_taken(net, settings):
    with pytest.raises(SpecError, match=r"give a list: \[|give paths, one after the other"):
        hp.latency(settings.pop("artifact", net), **settings)
