"""Every command and example of the documents runs as it is printed, on stand-ins that take seconds."""

import argparse
import fnmatch
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from functools import partial
from importlib import import_module
from inspect import signature
from operator import attrgetter
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from typer.main import get_command

import hydraprune as hp
from contracts.material import net, settings
from hydraprune.attacks import ATTACKS
from hydraprune.attacks.autoattack import AutoAttack
from hydraprune.attacks.fgsm import FGSM
from hydraprune.bounds import BOUNDS
from hydraprune.cli import main
from hydraprune.cli.main import app
from hydraprune.deploy import FORMATS
from hydraprune.masks import BUDGETS, STRUCTURES
from hydraprune.objectives import OBJECTIVES
from hydraprune.pruners import PRUNERS
from hydraprune.recipes import benchmark, library, runner
from hydraprune.recipes.library import load_recipe, resolve
from hydraprune.recipes.training import Fit
from hydraprune.study import schema, work
from hydraprune.train import Optim
from pruners.staged import Batches
from recipes.tiny import tiny
from study.small import Training

ROOT = Path(__file__).parents[1]
PAGES = [str(page.relative_to(ROOT)) for where in ("*.md", "docs/*.md", "results/*.md") for page in ROOT.glob(where)]
PACKAGE, SCRIPTS = ROOT / "src" / "hydraprune", sorted((ROOT / "benchmarks").glob("*.py"))
COMMANDS = get_command(app).commands
REGISTERED = {
    registry.noun: registry for registry in (PRUNERS, OBJECTIVES, STRUCTURES, BUDGETS, ATTACKS, BOUNDS, FORMATS)
}
NOT_RUN = {
    ".venv/bin/ruff": "a check of `make test`",
    ".venv/bin/lint-imports": "a check of `make test`",
    ".venv/bin/pytest": "runs this",
    "chromium": "draws the picture of a page; tests/report has a browser",
}
"""Program -> why a line that calls it is not run here."""
RUN_HERE = ("hydraprune", "make", "python", ".venv/bin/python")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def text(page):
    return (ROOT / page).read_text()


def lines(script):
    """The commands of a shell script as the shell reads them: loops unrolled, comments gone."""
    programs = (*RUN_HERE, *NOT_RUN)
    shown = "".join(f"{name}() {{ printf '%s\\0' {name} \"$@\"; echo; }}\n" for name in programs)
    ended = subprocess.run(["bash", "-euc", shown + script], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return [line.rstrip("\0").split("\0") for line in ended.stdout.splitlines()]


def short(recipe):
    """The recipe with a small network, few images and an epoch at most in each stage."""
    changes = ["data.samples=25", "data.validation=0.2"]
    if recipe.data.kind == "cifar10" and recipe.data.path is None:
        changes += ["data.path=CIFAR_FOLDER"]  # instead of the hub
    if recipe.net.weights is None:
        changes += ["net={kind: cnn_small}"]
    for stage in recipe.stages:
        at = f"stages.{stage.name}"
        changes += [f"{at}.epochs={min(1, stage.epochs)}"] if isinstance(stage, Fit) else [f"{at}.samples=4"]
    return resolve(recipe.plain(), changes, recipe.name)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """What commands of the documents are given: data, weights, a run, another, and a study of both."""
    folder = tmp_path_factory.mktemp("stand-ins")
    settings("cifar10", folder, 8)
    (folder / "cifar10-8").rename(folder / "CIFAR_FOLDER")
    save_file(hp.Net(kind="timm:resnet18").build(10).state_dict(), folder / "my.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HYDRAPRUNE_CACHE", str(folder / "cache"))
        runner.run(tiny("data={kind: cifar10, path: CIFAR_FOLDER, samples: 50}", "net.kind=cnn_small"), "RUN")
    shutil.copytree(folder / "RUN", folder / "OTHER_RUN")
    for name in ("RUN", "OTHER_RUN"):
        shutil.copytree(folder / name, folder / "STUDY" / name)
    return folder


class Copied(Training):
    """Cells whose last checkpoint is that of the stand-in, so that commands take it."""

    def __call__(self, values, out):
        super().__call__(values, out)
        if Path(out).parent.name != "shared":
            shutil.copytree("RUN/finetune", Path(out) / "finetune", dirs_exist_ok=True)


def with_less_work(monkeypatch):
    """Commands check all that they are given, and then do little of it."""
    run, cells = runner.run, schema.Study.cells
    monkeypatch.setattr(runner, "run", lambda recipe, *rest: run(short(recipe), *rest))
    monkeypatch.setattr(
        schema.Study, "cells", lambda study: [c for c in cells(study) if c.labels.get("seed") in (None, "0")]
    )
    monkeypatch.setattr(work, "run_study", partial(work.run_study, call=Copied()))
    monkeypatch.setattr(AutoAttack, "search", lambda attack, *how: FGSM().search(*how))
    for name, few in {"TRIALS": 2, "TUNED_ON": 8}.items():
        monkeypatch.setattr(benchmark, name, few)


@pytest.fixture
def perform(stand_ins, tmp_path, monkeypatch):
    """Runs all blocks of a page, in order, in a folder of stand-ins; returns the names that its Python leaves."""
    folder = tmp_path / "work"
    shutil.copytree(stand_ins, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HYDRAPRUNE_CACHE", str(folder / "cache"))
    monkeypatch.setenv("PYTHONSAFEPATH", "")  # commands set it
    with_less_work(monkeypatch)

    def command(program, *arguments):
        if program == "hydraprune":
            monkeypatch.setattr(sys, "argv", [program, *arguments])
            with pytest.raises(SystemExit) as ended:
                main()
            fine = (0, 1) if arguments[0] == "check" else (0,)  # one epoch makes no network that passes
            assert (ended.value.code or 0) in fine, shlex.join(arguments)
        elif program == "make":
            asked = ["make", "--directory", str(ROOT), "--dry-run", "--old-file=.venv/.installed", *arguments]
            made = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
            for line in re.findall(r"^\.venv/bin/(hydraprune .*)$", made, re.MULTILINE):
                command(*shlex.split(line))
        elif program not in NOT_RUN:
            parsed(*arguments)

    def perform(page):
        names = {"__name__": Path(page).stem}
        for language, code in FENCED.findall(text(page)):
            if language == "python":
                exec(code, names)
            elif language == "yaml":
                staged(yaml.safe_load(code))
            else:
                assert language == "bash", f"say what the block is: {code}"
                for line in lines(code):
                    command(*line)
        return names

    return perform


def parsed(script, *arguments):
    """See that a script of ours takes these arguments; it ends when it has read them."""

    def read(parser, arguments=None, namespace=None):
        whole(parser, arguments, namespace)
        raise KeyboardInterrupt

    whole = argparse.ArgumentParser.parse_args
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", read)
        patch.setattr(sys, "argv", [script, *arguments])
        patch.syspath_prepend(ROOT / "benchmarks")
        with pytest.raises(KeyboardInterrupt):
            runpy.run_path(str(ROOT / script), run_name="__main__")


def staged(stages):
    """See that a recipe takes these stages, in place of its own of the same names."""
    values = load_recipe("digits-cnn_digits-trades").plain()
    own = {stage["name"]: stage for stage in values["stages"]}
    new = {stage.get("name", stage["kind"]): stage for stage in stages}
    resolve(values | {"stages": list((own | new).values())}, (), "document")


SPECIAL = ("README.md", "docs/pruners.md", "docs/architecture.md")


@pytest.mark.parametrize("page", [page for page in PAGES if page not in SPECIAL and FENCED.search(text(page))])
def test_a_page_runs_as_it_is_printed(page, perform):
    perform(page)


def test_the_readme_runs_as_it_is_printed_and_its_network_is_robust(perform):
    names = perform("README.md")
    assert names["result"].robust_accuracy["pgd-50x10"] > 0.4
    again, meta = hp.load("pruned", hp.Net(kind="cnn_digits").build(10, in_channels=1, image_size=8))
    assert meta.sparsity > 0.94
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(again.eval()(x), names["model"].eval()(x))


def test_the_page_of_pruners_runs_as_it_is_printed_and_prunes(perform):
    names = perform("docs/pruners.md")
    model, plain = names["model"], names["plain"]
    count = hp.MaskView(model).count()
    assert count.kept == sum(int(p.count_nonzero()) for n, p in plain.named_parameters() if p.dim() > 1)
    assert 0.09 < count.kept / count.total < 0.11
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(model.eval()(x), plain.eval()(x))
    resnet, small = names["resnet"], names["small"]
    assert small.conv1.out_channels == 16
    torch.testing.assert_close(small.eval()(x), resnet.eval()(x))
    with hp.prune(pruned := net(), names["Halfway"](), 0.5) as pruning:
        how = {"epochs": 4, "optim": Optim(lr=0.1), "hooks": [pruning]}
        hp.fit(pruned, pruning.parameters(), Batches(), hp.Natural(), **how)
    assert hp.MaskView(pruned).count().kept == 806 // 2


def test_the_contracts_of_the_architecture_are_those_of_the_code():
    (code,) = (code for language, code in FENCED.findall(text("docs/architecture.md")) if language == "python")
    module = owner = None
    for line in code.splitlines():
        if place := re.search(r"# (\w+)/(\w+)\.py", line):
            module = import_module(f"hydraprune.{place[1]}.{place[2]}")
        if found := re.match(r"class (\w+)", line):
            owner = getattr(module, found[1])
        if found := re.match(r"( *)def (\w+)\(([^)]*)\)", line):
            function = getattr(owner if found[1] else module, found[2])
            named = re.findall(r"(?:^|, )(\w+)", found[3])
            assert [name for name in signature(function).parameters if name in named] == named, line


def test_every_program_that_is_not_run_is_printed_somewhere():
    printed = [code for page in PAGES for language, code in FENCED.findall(text(page)) if language == "bash"]
    called = {line[0] for code in printed for line in lines(code)}
    assert called >= NOT_RUN.keys()


def spans(page):
    """The code within the sentences of a page."""
    return re.findall(r"`([^`\n]+)`", FENCED.sub("", text(page)))


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_within_sentences_exist(page):
    scripts = "".join(script.read_text() for script in SCRIPTS)
    for span in spans(page):
        if found := re.match(r"hydraprune ([a-z]\w+)(.*)", span):
            assert {*re.findall(r"--[\w-]+", found[2])} <= options(COMMANDS[found[1]]), span
        elif span.startswith("python benchmarks/"):
            parsed(*shlex.split(span)[1:])
        elif option := re.match(r"--[a-z-]+", span):
            assert any(option[0] in options(command) for command in COMMANDS.values()) or f'"{option[0]}"' in scripts


def options(command):
    return {"--help"} | {option for parameter in command.params for option in parameter.opts}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_takes_what_its_head_says(script):
    for line in re.findall(r"^ +python (benchmarks/.*)$", script.read_text(), re.MULTILINE):
        parsed(*shlex.split(line, comments=True))


@pytest.mark.parametrize("page", PAGES)
def test_names_within_sentences_exist(page):
    recipes = [*library.names(), *schema.names()]
    for span in spans(page):
        if re.fullmatch(r"[a-z]\w*-[\w*-]+", span) and re.search(r"digits|cifar10|svhn|imagenet", span):
            assert fnmatch.filter(recipes, span), span
        elif found := re.fullmatch(r"hp\.([a-z]\w*\.[A-Z]\w*|[A-Za-z]\w*)", span):
            assert found[1].endswith(".CLASS") or attrgetter(found[1])(hp), span
        for noun, name in re.findall(r"\b(pruner|objective|structure|budget): ([a-z][\w+-]*)", span):
            assert name in REGISTERED[noun].names(), span
        for name in re.findall(r"\bkind: ([a-z][\w+-]*)", span):
            assert any(name in registry.names() for registry in REGISTERED.values()), span


@pytest.mark.parametrize(("page", "noun"), [("pruners", "pruner"), ("evaluation", "attack"), ("certificates", "bound")])
def test_a_page_names_everything_of_its_kind(page, noun):
    named = {name for span in spans(f"docs/{page}.md") for name in re.findall(r"[a-z][\w+-]*", span)}
    assert named >= set(REGISTERED[noun].names())


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files_within_sentences_exist(page):
    for link in re.findall(r"\]\(([^)#:\s]+)(?:#[\w-]+)?\)", text(page)):
        assert (ROOT / page).parent.joinpath(link).exists(), link
    rooms = {folder.name for root in (ROOT, PACKAGE) for folder in root.iterdir() if folder.is_dir()}
    for span in spans(page):
        if re.fullmatch(r"\w+(/[\w.-]*)+", span) and span.split("/")[0] in rooms - {"runs"}:
            assert (ROOT / span).exists() or (PACKAGE / span).exists(), span
