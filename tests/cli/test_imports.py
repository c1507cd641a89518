"""`hydraprune import`, and the commands that take what it leaves."""

import json
from pathlib import Path

import pytest
import torch

import hydraprune as hp
from hydraprune.runs.meta import Meta
from nets.test_golden import checkpoint, entries

NET = ["--net", "cnn_digits", "--in-channels", "1", "--image-size", "8", "--out", "ours"]


@pytest.fixture
def theirs(command):
    """A masked checkpoint as HYDRA's authors save it, in the working directory."""
    net = hp.Net(kind="cnn_digits").build(10, 1, 8)
    state = net.state_dict()
    scores = {f"{n.removesuffix('.weight')}.popup_scores": torch.randn_like(w) for n, w in state.items() if w.dim() > 1}
    torch.save({"state_dict": {f"module.{n}": t for n, t in (state | scores).items()}}, "theirs.pth.tar")
    return net


def test_the_authors_checkpoint_as_a_command(command):
    entry = entries()["cifar_model"]
    torch.save({"state_dict": checkpoint(entry)}, "a.pth.tar")
    code, out, err = command("import", "a.pth.tar", "--net", "cnn_small", "--keep", entry["k"], "--out", "ours")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "read as hydra",
        "kept 0.1 of each layer, by 4 scores",
        "21,477 of 214,760 weights, 90.00 % sparse",
        "written to ours",
    ]
    assert hp.load("ours")[1].kept == entry["nonzero_weights"]


@pytest.mark.usefixtures("theirs")
def test_sparsity_says_what_keep_does_not(command):
    assert command("import", "theirs.pth.tar", *NET, "--sparsity", "0.9")[0] == 0
    NET[-1] = "again"
    assert command("import", "theirs.pth.tar", *NET, "--keep", "0.1")[0] == 0
    NET[-1] = "ours"
    assert hp.load("ours")[1].layers == hp.load("again")[1].layers


@pytest.mark.usefixtures("theirs")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what share of each layer it keeps, their k: --keep 0.1"),
        (["--keep", "0.1", "--sparsity", "0.9"], "--keep 0.1 and --sparsity 0.9 say the same thing; give one of them"),
        (["--sparsity", "1"], "k is 0.0; give the kept fraction"),
        (["--format", "hydar"], "there is no format 'hydar'; did you mean 'hydra'?"),
        (["--keep", "1", "--format", "timm"], "timm has no model 'cnn_digits'"),
        (["--keep", "1", "--format", "benchmark"], "so it is hydra: --format hydra"),
        (["--keep", "1", "--num-classes", "12"], "was made for another network; of another shape"),
        (["--keep", "1", "--normalize", "cifar"], "unknown normalisation 'cifar'; did you mean 'cifar10'"),
    ],
)
def test_what_is_wrong_is_one_line(command, arguments, message):
    code, out, err = command("import", "theirs.pth.tar", *NET, *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err
    assert not Path("ours").exists()


@pytest.mark.usefixtures("theirs")
def test_other_commands_take_what_was_imported(command):
    assert command("import", "theirs.pth.tar", *NET, "--keep", "0.2")[0] == 0
    code, _, err = command("evaluate", "ours", "--attacks", "fgsm", "--samples", "20")
    assert code == 2
    assert "ours was not made by a recipe, so its data is unknown; give it: --set data.kind=cifar10" in err
    given = ["--set", "data.kind=digits", "--set", "threat.eps=0.1"]
    code, _, err = command("evaluate", "ours", "--attacks", "fgsm", "--samples", "20", *given)
    assert (code, err) == (0, "")
    (written,) = Path("ours").rglob("evaluation.json")
    record = json.loads(written.read_text())
    assert record["pruner"] == "hydra"
    assert record["threat"] == {"norm": "linf", "eps": 0.1}
    assert record["kept"] == hp.load("ours")[1].kept
    code, out, err = command("check", "ours", "--samples", "40", *given)
    assert (code in (0, 1), err) == (True, "")
    assert "deterministic" in out
    hp.export("ours", "ours.hpk")
    assert hp.load("ours.hpk")[1].origin["layout"] == "hydra"
    for form in ("packed", "dense"):  # a single file of ours, as a folder that commands measure
        hp.export("ours", f"ours.{form}", form)
        code, out, err = command("import", f"ours.{form}", "--out", f"from-{form}")
        assert (code, err) == (0, "")
        assert "read as one of ours" in out
        assert hp.load(f"from-{form}")[1].sha256["model.safetensors"] == hp.load("ours")[1].sha256["model.safetensors"]


OWN = """
from torch import nn


def made(num_classes=10):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, num_classes))
"""


def test_a_network_that_was_saved_without_its_name(command, monkeypatch):
    Path("strange_nets.py").write_text(OWN)
    monkeypatch.syspath_prepend(".")
    import strange_nets

    model = strange_nets.made()
    hp.prune(model, "magnitude", 0.5)
    saved = hp.save("saved", model)
    code, _, err = command("evaluate", "saved", "--set", "data.kind=digits", "--samples", "4")
    assert (code, err.count("\n")) == (2, 1)
    assert "does not say which network it holds; name what makes it: `hydraprune import saved --net" in err
    code, _, err = command("import", "saved", "--out", "ours")
    assert (code, "say which network it holds: --net" in err) == (2, True)
    made = ["--net", "strange_nets:made", "--out", "ours"]
    code, _, err = command("import", "saved", *made)
    assert (code, err.count("\n"), Path("ours").exists()) == (2, 1, False)
    assert "does not take images (1, 3, 32, 32)" in err
    assert "--in-channels, --image-size" in err
    size = ["--in-channels", "1", "--image-size", "8"]
    assert command("import", "saved", *made, *size)[0] == 0
    found, meta = hp.load("ours", trust_code=True)
    assert (meta.kept, meta.layers, meta.net.kind) == (saved.kept, saved.layers, "strange_nets:made")
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(found(x), model(x))
    assert "load it as it is" in command("import", "ours", "--net", "strange_nets:made", "--out", "again")[2]


def test_a_folder_of_the_hub_is_imported_and_an_export_is_no_folder(command):
    model = hp.Net(kind="cnn_digits").build(10, 1, 8)
    hp.save("net", model, Meta(net=hp.Net(kind="cnn_digits"), num_classes=10, in_channels=1, image_size=8))
    hp.export("net", "card", "hub")
    hp.export("net", "net.hpk")
    code, out, _ = command("import", "card", "--out", "again")
    assert (code, out.splitlines()[0]) == (0, "read as one of ours")
    assert hp.load("again")[1].kept == hp.load("net")[1].kept
    code, _, err = command("evaluate", "net.hpk")
    assert (code, err.count("\n")) == (2, 1)
    assert "net.hpk is a file, and this takes the folder of a checkpoint; make one of it: `hydraprune import" in err
