"""What a command costs before it starts, and what it says where a package is missing."""

import json
import re
import subprocess
import sys
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
import yaml

from hydraprune.pruners import PRUNERS
from hydraprune.recipes import library
from hydraprune.study import schema
from recipes.tiny import TINY

HEAVY = {"torch", "numpy", "lightning_fabric", "matplotlib", "tensorboard", "datasets", "timm", "sklearn", "scipy"}
OPTIONAL = (
    "pyautoattack", "foolbox", "pyarrow", "PIL", "lightning_fabric", "datasets", "torchvision", "scipy", "matplotlib",
    "jinja2", "tensorboard", "timm", "ray", "sklearn",
)  # fmt: skip
MAIN = """
import sys
sys.modules.update(dict.fromkeys({blocked!r}))
from hydraprune.cli import main
try:
    main()
finally:
    print(*(name for name, module in sys.modules.items() if module), file=open("loaded", "w"))
"""


@pytest.fixture
def alone(tmp_path):
    """A command in a process of its own, without some packages: its exit code, output, errors and loaded modules."""

    def call(*arguments, blocked=()):
        script = MAIN.format(blocked=blocked)
        ran = subprocess.run(
            [sys.executable, "-c", script, *map(str, arguments)], cwd=tmp_path, capture_output=True, text=True
        )
        return ran.returncode, ran.stdout, ran.stderr, set((tmp_path / "loaded").read_text().split())

    return call


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["run", "--help"], 0),
        (["list"], 0),
        (["lsit"], 2),
        (["list", "--all"], 2),
        (["run", "digits-dmo", "--out", "x"], 2),
        (["run", "gone.yaml", "--out", "x"], 2),
        (["run", "digits-demo", "--out", "file/run"], 2),
        (["study", "sedes", "--out", "x"], 2),
        (["evaluate", "gone"], 2),
        (["report", "gone"], 2),
        (["table", "gone"], 2),
        (["prune", "--net", "cnn_digits"], 2),
    ],
)
def test_what_is_answered_without_torch(alone, tmp_path, arguments, code):
    (tmp_path / "file").touch()
    found, _, err, loaded = alone(*arguments)
    assert (found, bool(err)) == (code, code != 0)
    assert "Traceback" not in err
    assert not HEAVY & loaded


def test_the_list_is_read_as_the_package_validates_it(command):
    code, out, _ = command("list")
    assert code == 0
    for noun, names, load in (
        ("recipes", library.names(), library.load_recipe), ("studies", schema.names(), schema.load_study),
    ):  # fmt: skip
        lines = out.partition(f"{noun}\n")[2].splitlines()
        assert [line.split(maxsplit=1) for line in lines[: len(names)]] == [[n, load(n).about] for n in names]
    for name in PRUNERS.names():
        about = re.escape(PRUNERS.get(name).__doc__.partition("\n")[0])
        assert re.search(rf"^  {re.escape(name)} +{about}$", out, re.MULTILINE)


def test_a_plug_in_is_listed_and_not_imported(command, monkeypatch, tmp_path):
    info = tmp_path / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hydraprune.pruner]\nplug = no_such_module:Plug\n")
    (entry,) = PathDistribution(info).entry_points
    monkeypatch.setitem(PRUNERS._table, "plug", [entry])
    code, out, _ = command("list")
    assert code == 0
    assert re.search(r"^  plug +the plug-in no_such_module:Plug of the package acme$", out, re.MULTILINE)
    code, _, err = command("prune", "--net", "cnn_digits", "--data", "digits", "--pruner", "plug", "--out", "run")
    assert code == 2
    assert err.startswith(
        "error: the plug-in no_such_module:Plug of the package acme, the pruner 'plug', cannot be imp"
    )


def test_the_digits_need_no_extra(alone, tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    code, out, err, loaded = alone("run", "tiny.yaml", "--out", "run", blocked=OPTIONAL)
    assert (code, err) == (0, "")
    assert not set(OPTIONAL) & loaded
    assert "the picture needs the package matplotlib; install it by `pip install 'hydraprune[report]'`\n" in out
    assert [record["stage"] for record in json.loads((tmp_path / "run/results.json").read_text())] == [
        "pretrain", "finetune",
    ]  # fmt: skip
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 5
    assert not (tmp_path / "run/tensorboard").exists()


RUN = ["run", "tiny.yaml", "--out", "run", "--set"]


@pytest.mark.parametrize(
    ("arguments", "blocked", "complaint"),
    [
        ([*RUN, "stages.evaluate.attacks=[autoattack]"], "pyautoattack", "attack 'autoattack' [attacks]"),
        ([*RUN, "stages.evaluate.attacks=[{kind: ensemble, attacks: [pgd, square]}]"], "pyautoattack",
         "attack 'square' [attacks]"),
        ([*RUN, "stages.evaluate.attacks=[cw]", "--set", "threat={norm: l2, eps: 0.5}"], "foolbox",
         "attack 'cw' [attacks]"),
        ([*RUN, "stages.evaluate.corruptions=true"], "matplotlib", "measuring corruptions [images]"),
        ([*RUN, "stages.evaluate={kind: certify, smoothing: {sigma: 0.25}}"], "scipy",
         "randomized smoothing [smoothing]"),
        ([*RUN, "net={kind: 'timm:resnet18'}"], "timm", "net 'timm:resnet18' [timm]"),
        ([*RUN, "data={kind: cifar10, path: .}"], "pyarrow", "data 'cifar10' [cifar]"),
        ([*RUN, "data={kind: svhn}"], "datasets", "data 'svhn' without data.path [hub]"),
        ([*RUN, "data={kind: images, path: .}"], "torchvision", "data 'images' [images]"),
        ([*RUN, "trainer.devices=2"], "lightning_fabric", "trainer.devices 2 [distributed]"),
        (["report", "."], "jinja2", "the page [report]"),
        (["study", "methods-digits", "--ray", "auto", "--out", "run"], "ray", "--ray [ray]"),
    ],
)  # fmt: skip
def test_a_missing_package_is_one_line_before_anything_runs(
    command, tmp_path, monkeypatch, arguments, blocked, complaint
):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        (tmp_path / part / "a" / "b.png").touch()
        (tmp_path / f"{part}.parquet").touch()
    monkeypatch.setitem(sys.modules, blocked, None)
    for name in [name for name in sys.modules if name.startswith((f"{blocked}.", *USERS.get(blocked, ())))]:
        monkeypatch.delitem(sys.modules, name)
    code, _, err = command(*arguments)
    what, _, extra = complaint.partition(" [")
    needs = f"{what} needs the package {blocked}; install it by `pip install 'hydraprune[{extra}'`"
    assert (code, err) == (2, f"error: {needs}\n")
    assert not Path("run/recipe.yaml").exists()


USERS = {
    "pyarrow": ["hydraprune.data.parquet"],
    "torchvision": ["hydraprune.data.streamed"],
    "matplotlib": ["hydraprune.evaluation.corruptions"],
    "jinja2": ["hydraprune.report.page"],
}
"""Our modules that import it when they are imported."""
