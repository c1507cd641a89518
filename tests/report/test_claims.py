"""Claims for the public benchmark: their figures, what is published beside them, and files that are none."""

import json
from importlib.resources import files

import pytest

from hydraprune.report import claims
from hydraprune.report.experiment import settings_of
from hydraprune.report.reported import published
from hydraprune.runs.folder import find_runs
from report.folders import cell, claim


def table(folder):
    runs = find_runs([folder])
    found = claims.table(settings_of(runs))
    cells = [[name, *(cell.text for cell in row)] for name, row in found.rows] if found else []
    return found, cells, [problem for run in runs for problem in run.problems]


def place(folder, seed=0, sparsity=0.9):
    return folder / cell("hydra", sparsity, seed) / "prune"


def test_without_claims_there_is_no_table(folder):
    assert table(folder)[0] is None


def test_a_claim_is_shown_beside_the_published_figure(folder):
    claim(place(folder), "HYDRA_Sehwag2020Hydra_R18_CIFAR10_US_90", 0.899, 0.4, reasons=[])
    found, cells, problems = table(folder)
    assert found.columns == [
        "network", "sparsity %", "clean %", "benchmark: AutoAttack, ℓ∞ 0.031 %", "benchmark: FMN, ℓ∞ 8/255 %",
        "ours: ensemble, ℓ∞ 8/255 %", "ours: worst-case, ℓ∞ 8/255 %", "published %", "runs", "may be entered",
    ]  # fmt: skip
    assert cells == [
        ["HYDRA_Sehwag2020Hydra_R18_CIFAR10_US_90", "hydra 90 %", "89.9", "75.0", "40.0", "50.0 *", "35.0", "20.0",
         "43.3 (76.7)", "1", "✓ yes"],
    ]  # fmt: skip
    assert problems == []


def test_claims_of_several_seeds_are_means_and_others_are_rows_of_their_own(folder):
    for seed, robust in enumerate((0.3, 0.5)):
        claim(place(folder, seed), "X_R18_CIFAR10_US_90", 0.9, robust, reasons=[f"seed {seed}"])
    claim(place(folder, 1, 0.5), "X_R18_CIFAR10_US_50", 0.5, 0.6)
    _, cells, _ = table(folder)
    assert [(row[0], row[4], row[-2], row[-1]) for row in reversed(cells)] == [
        ("X_R18_CIFAR10_US_90", "40.0 ± 14.1", "2", "no: seed 0; seed 1"),
        ("X_R18_CIFAR10_US_50", "60.0", "1", "no: too few images"),
    ]


def test_a_claim_of_a_network_that_nothing_else_measured(folder):
    (place(folder).parent / "results.json").unlink()
    claim(place(folder), "X_R18_CIFAR10_US_90", 0.9, 0.4)
    assert [row[:2] for row in table(folder)[1]] == [["X_R18_CIFAR10_US_90", "hydra 90 %"]]


def test_a_claim_of_other_weights_is_left_out(folder):
    claim(place(folder), "X_R18_CIFAR10_US_90", 0.9, 0.4, sha256="old")
    found, _, problems = table(folder)
    assert found is None
    assert problems == [
        "prune/claim.json left out: it was measured on other weights than the checkpoint's; "
        "run `hydraprune benchmark` again"
    ]
    claim(place(folder), "X_R18_CIFAR10_US_90", 0.9, 0.4, sha256="hydra 0.9 0")
    assert len(table(folder)[1]) == 1


GOOD = {"accuracy": 0.5, "samples": 8, "eps": 0.1}


@pytest.mark.parametrize(
    "change",
    [
        {"name": 3},
        {"reasons": None},
        {"sparsity": 1.5},
        {"sparsity": float("nan")},
        {"strict": {}},
        {"strict": {"attacks": {"pgd": 0.5}}},
        {"strict": {"attacks": {"pgd": GOOD | {"accuracy": "high"}}}},
        {"strict": {"attacks": {"pgd": GOOD | {"samples": 0}}}},
        {"benchmark": {"clean_accuracy": 0.5, "autoattack": GOOD}},
        {"benchmark": []},
    ],
)
def test_a_claim_that_is_none_is_a_problem_and_stops_nothing(folder, change):
    claim(place(folder), "X_R18_CIFAR10_US_90", 0.9, 0.4)
    claim(place(folder, 1), "X_R18_CIFAR10_US_90", 0.9, 0.4)
    file = place(folder) / "claim.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    _, cells, problems = table(folder)
    assert [row[-2] for row in cells] == ["1"]
    assert [problem.split(" left out: ")[0] for problem in problems] == ["prune/claim.json"]


@pytest.mark.parametrize("content", ["", '{"name": "X', "[]", "3"])
def test_a_claim_that_is_half_written(folder, content):
    (place(folder) / "claim.json").write_text(content)
    found, _, problems = table(folder)
    assert found is None
    assert len(problems) == 1


def test_every_published_figure_is_found_under_its_name():
    board = json.loads(files("hydraprune.report").joinpath("static/leaderboard.json").read_text())
    nets, structures = {"ResNet-18": "R18", "VGG-16": "V16"}, {"weights": "US", "filters or channels": "S"}
    for one in board["tables"]:
        for method, values in one["rows"].items():
            for column, value in zip(one["columns"], values, strict=True):
                where = [nets[column["net"]], one["dataset"].replace("-", ""), structures[one["structure"]]]
                name = "_".join([method.lower(), "Author2020Title", *where, str(column["sparsity"])])
                assert published(name) == value
    assert published("HYDRA_Sehwag2020Hydra_R18_CIFAR10_US_89.2") is None
    assert published("HYDRA") is None
    assert published("Other_R18_CIFAR10_US_90") is None
