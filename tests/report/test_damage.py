"""Whatever is damaged in a run, the page is drawn, and says what it leaves out."""

import json
import re
import shutil

import pytest
import torch
import yaml
from hypothesis import given, settings, strategies

from damage import QUICK, as_json, bytewise, structural
from hydraprune.core.errors import HydrapruneError
from hydraprune.core.files import write_json
from hydraprune.core.tensors import load_tensors, save_tensors
from hydraprune.report import rows
from hydraprune.report.page import render
from hydraprune.runs.folder import find_runs
from report.folders import recipe, write_run

LEVELS = [0.9, 0.8, 0.7, 0.6, 0.5]
STAGE = "prune"
JSON = ["environment.json", "results.json", "failure.json"] + [
    f"{STAGE}/{name}"
    for name in ("checkpoint.json", "checks.json", "claim.json", "corruptions.json", "curves.json",
                 "linf-0.2/evaluation.json")
]  # fmt: skip
LINES = ["metrics.jsonl", f"{STAGE}/smoothing.jsonl"]
TENSORS = [f"{STAGE}/{name}.safetensors" for name in ("masks", "verdicts", "examples")] + ["pretrain/model.safetensors"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with every file that the page reads."""
    folder = write_run(
        tmp_path_factory.mktemp("runs") / "run",
        recipe(source={"paper": "p", "reported": {"dense": {"clean": 85.0}}, "checked": False}),
    )
    accuracy = {"samples": 80, "accuracy": {"fog": LEVELS}, "mean_accuracy": 0.7}
    for stage in ("pretrain", STAGE):
        write_json(folder / stage / "corruptions.json", {"corrupted": {"built-in": accuracy}})
    write_json(folder / "failure.json", {"error": "it broke", "trace": "", "time": 1.0, "labels": {}})
    return folder


def shown(run, name, content):
    """The page and the problems of the run with other content in one of its files."""
    file = run / name
    before = file.read_bytes()
    try:
        file.write_bytes(content)
        runs = find_runs([run])
        page = render(runs)
        page.encode()
        table(run)
    finally:
        file.write_bytes(before)
    return page, runs[0].problems


def table(run):
    """Every row, or one error."""
    told: list[str] = []
    try:
        for row in rows([run], told.append):
            for figure in row.figures.values():
                assert 0 <= figure.mean <= 1
    except HydrapruneError as error:
        told.append(str(error))
    assert not [text for text in told if "\n" in text]
    return told


def whole(page, problems):
    assert not re.search(r'="[^"]*\b(nan|inf)\b', page)
    assert not [text for text in problems if "\n" in text]


def test_the_whole_run_has_no_problem_but_its_failure(run):
    page, problems = shown(run, "environment.json", (run / "environment.json").read_bytes())
    whole(page, problems)
    assert problems == ["failed: it broke"]
    assert table(run) == []
    assert len(re.findall("<section", page)) == 14


@pytest.mark.parametrize("name", [*JSON, *LINES, *TENSORS, "recipe.yaml"])
def test_changed_bytes(run, name):
    @settings(QUICK, max_examples=6)
    @given(bytewise((run / name).read_bytes()))
    def check(content):
        page, problems = shown(run, name, content)
        whole(page, problems)
        if name in JSON and not is_json(content):
            assert any(text.startswith(f"{name} left out: ") for text in problems)
            assert f"{name} left out: " in page

    check()


def is_json(content):
    try:
        json.loads(content)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("name", JSON)
def test_odd_values(run, name):
    @settings(QUICK, max_examples=12)
    @given(structural(json.loads((run / name).read_text())))
    def check(value):
        whole(*shown(run, name, as_json(value)))

    check()


@pytest.mark.parametrize("name", TENSORS)
def test_odd_tensors_with_a_checksum_that_fits(run, name):
    tensors, meta = load_tensors(run / name)
    shapes = [(), (0,), (3,), (2, 3), (1, 1, 1, 1)]
    odd = [torch.full(shape, value).to(kind) for shape in shapes for value in (0.0, -1.0, 1e20, torch.nan)
           for kind in (torch.float32, torch.int64, torch.bool, torch.uint8)]  # fmt: skip
    values = strategies.one_of(strategies.none(), strategies.sampled_from(odd))

    @settings(QUICK, max_examples=12)
    @given(strategies.sampled_from(sorted(tensors)), values, structural(meta or {"x": 1}))
    def check(key, value, changed):
        damaged = {n: t for n, t in tensors.items() if n != key} | ({} if value is None else {key: value})
        save_tensors(run.parent / "damaged", damaged, changed if isinstance(changed, dict) else {})
        whole(*shown(run, name, (run.parent / "damaged").read_bytes()))

    check()


@pytest.mark.parametrize("name", LINES)
def test_odd_lines(run, name):
    lines = [json.loads(line) for line in (run / name).read_text().splitlines()]

    @settings(QUICK, max_examples=15)
    @given(strategies.integers(0, len(lines) - 1), structural(lines[0]))
    def check(number, odd):
        changed = [*lines[:number], odd, *lines[number + 1 :]]
        whole(*shown(run, name, b"".join(as_json(line) + b"\n" for line in changed)))

    check()


def test_odd_recipes(run):
    def as_yaml(value):
        try:
            return yaml.safe_dump(value, allow_unicode=True).encode()
        except UnicodeEncodeError:
            return as_json(value)

    @settings(QUICK, max_examples=20)
    @given(structural(yaml.safe_load((run / "recipe.yaml").read_text())))
    def check(value):
        whole(*shown(run, "recipe.yaml", as_yaml(value)))

    check()


@pytest.mark.parametrize("name", [*JSON, *LINES, *TENSORS, "recipe.yaml"])
def test_a_folder_in_place_of_a_file_is_named(run, tmp_path, name):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / name).mkdir()
    (found,) = find_runs([tmp_path / "run"])
    whole(render([found]), found.problems)
    assert any(name in text for text in found.problems)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.jsonl", '{"stage": "pretrain", "epoch": 4, "loss": 1e999}\n'),
        ("metrics.jsonl", '{"stage": "pretrain", "epoch": "4", "loss": 1.0}\n'),
        ("metrics.jsonl", '{"stage": "pretrain", "epoch": 4, "seconds": "long"}\n'),
        ("metrics.jsonl", '{"stage": "pretrain", "epoch": 4, "accuracy": 40}\n'),
        (f"{STAGE}/checkpoint.json", '{"pruner": "hydra", "sparsity": 0.9, "layers": {"0.weight": [1]}}'),
        (f"{STAGE}/checkpoint.json", '{"pruner": "hydra", "sparsity": 0.9, "layers": {"0.weight": [3, 2]}}'),
        ("results.json", "3"),
        ("results.json", '[{"stage": "../outside"}]'),
        (f"{STAGE}/curves.json", '{"security": {"fmn": {"eps": [0.1, 0.2], "accuracy": [0.5]}}}'),
        (f"{STAGE}/checks.json", '[{"name": "n", "passed": "yes", "found": "", "expected": "", "why": ""}]'),
        (f"{STAGE}/corruptions.json", '{"corrupted": {"built-in": {"samples": 8, "accuracy": {"fog": [0.5]}}}}'),
        (f"{STAGE}/smoothing.jsonl", '{"index": 0, "label": 1, "prediction": 1, "radius": NaN}\n'),
    ],
)
def test_a_value_that_does_not_fit_is_left_out_and_named(run, name, content):
    page, problems = shown(run, name, content.encode())
    whole(page, problems)
    assert [text for text in problems if name in text and "left out" in text]


def test_a_record_of_a_folder_outside_of_the_run_is_left_out(run):
    records = json.loads((run / "results.json").read_text())
    records[1]["stage"] = f"../{run.name}/{STAGE}"
    _, problems = shown(run, "results.json", as_json(records))
    assert [text for text in problems if "expected a path inside of the run" in text]


@pytest.mark.parametrize(
    "ours", ["report.images._gallery", "report.costs.load", "runs.folder.contents.epochs", "runs.folder.read_records"]
)
def test_a_mistake_of_ours_is_not_taken_for_damage(run, monkeypatch, ours):
    def broken(*_, **__):
        raise TypeError("ours")

    monkeypatch.setattr(f"hydraprune.{ours}", broken)
    with pytest.raises(TypeError, match="ours"):
        render(find_runs([run]))
