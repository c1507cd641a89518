"""Other threat models than the recipe's, as a table and against the radius, with figures that are easy to check."""

import shutil

import pytest

from hydraprune.core.files import write_json
from hydraprune.report import threats
from hydraprune.report.chart import Palette
from hydraprune.report.experiment import settings_of
from hydraprune.runs.folder import find_runs
from report.folders import cell, elsewhere, record

FMN = {"eps": [0.0, 0.1, 0.2], "accuracy": [0.6, 0.5, 0.25]}


def setting_of(folder):
    (setting,) = settings_of(find_runs([folder]))
    return setting


def attacked(folder, seed, eps, robust, stage="prune", norm="linf", sparsity=0.9, **more):
    found = record("prune", "hydra", 36, 0.6, 0)
    elsewhere(folder / cell("hydra", sparsity, seed) / stage, found, eps, robust, norm, **more)


def alone(folder):
    """Leave one run there."""
    for run in folder.glob("pruner=*"):
        if run.name != cell():
            shutil.rmtree(run)


def text(table):
    return [[name, *(cell.text for cell in cells)] for name, cells in table.rows]


def test_nothing_elsewhere_is_no_table_and_no_chart(folder):
    setting = setting_of(folder)
    assert threats.table(setting.variants) is None
    assert threats.against_radius(setting, Palette([])) == []


def test_a_row_for_each_threat_model_over_the_seeds_that_met_it(folder):
    for seed, robust in enumerate((0.25, 0.5)):
        attacked(folder, seed, 16 / 255, robust)
    attacked(folder, 0, 1.0, 0, "prune", "l2", robust_accuracy={"cw-10x9": 0.125}, samples=8)
    attacked(folder, 0, 0.01, 0.55)
    table = threats.table(setting_of(folder).variants)
    assert table.columns == ["threat model", "clean %", "pgd-50x10 %", "cw-10x9 %", "runs"]
    assert text(table) == [
        ["hydra 90 %", "ℓ∞ 0.01", "60.0", "55.0", "–", "1"],
        ["hydra 90 %", "ℓ∞ 8/255 (recipe)", "60.5 ± 0.7", "18.5 ± 0.7", "–", "2"],
        ["hydra 90 %", "ℓ∞ 16/255", "60.0 ± 0.0", "37.5 ± 17.7", "–", "2"],
        ["hydra 90 %", "ℓ2 1", "60.0", "–", "12.5", "1"],
    ]


def test_accuracy_against_the_radius_of_each_norm(folder):
    for seed, robust in enumerate((0.125, 0.25)):
        attacked(folder, seed, 0.2, robust)
        attacked(folder, seed, 0.3, 0.9, "pretrain")
    attacked(folder, 0, 0.5, 0, "prune", "l2", 0.5)  # one radius of a norm is no curve
    setting = setting_of(folder)
    (figure,) = threats.against_radius(setting, Palette(["hydra"]))
    assert figure.title == "pgd-50x10 in ℓ∞"
    assert [chart.title for chart in figure.charts] == ["90 % of weights removed"]
    hydra, dense = figure.charts[0].series
    assert (hydra.name, dense.name) == ("hydra", "dense")
    assert [(p.x, p.y) for p in hydra.points] == [
        (pytest.approx(8 / 255), pytest.approx(18.5)), (0.2, pytest.approx(18.75)),
    ]  # fmt: skip
    assert hydra.points[1].low == pytest.approx(18.75 - 100 * 0.125 / 2**0.5)
    assert hydra.points[1].tip == "hydra 90 %, pgd-50x10 at ℓ∞ 0.2: 18.8 ± 8.8 % (seeds 12.5, 25.0; 80 images)"
    assert [(p.x, p.y) for p in dense.points] == [
        (pytest.approx(8 / 255), pytest.approx(60)), (0.3, pytest.approx(90)),
    ]  # fmt: skip


def test_security_curves_of_the_same_norm_lie_in_the_same_chart(folder):
    alone(folder)
    attacked(folder, 0, 0.2, 0.125)
    attacked(folder, 0, 1.0, 0.25, norm="l2")
    place = folder / cell() / "prune"
    near = {"eps": [0.0, 0.01], "accuracy": [0.6, 0.55]}
    write_json(place / "curves.json", {"security": {"fmn": near, "ddn": near}})
    write_json(place / "linf-0.2" / "curves.json", {"security": {"fmn": FMN}})
    write_json(place / "l2-1" / "curves.json", {"security": {"fmn": {"eps": [0.0, 9.0], "accuracy": [0.6, 0.0]}}})
    (figure,) = threats.against_radius(setting_of(folder), Palette(["hydra"]))
    lines = {line.name: line for line in figure.charts[0].series}
    assert lines.keys() == {"hydra", "hydra, fmn", "hydra, ddn"}
    # Of two curves of an attack, the one that reaches farther.
    assert [(p.x, p.y) for p in lines["hydra, fmn"].points] == [(0, 60), (0.1, 50), (0.2, 25)]
    assert [p.x for p in lines["hydra, ddn"].points] == [0, 0.01]
    assert not lines["hydra, fmn"].marks
    assert len({line.dash for line in lines.values()}) == 3


def test_curves_of_other_weights_are_not_drawn(folder):
    """They lie beside a record that is left out."""
    alone(folder)
    place = folder / cell() / "prune"
    attacked(folder, 0, 0.2, 0.125, network="old")
    attacked(folder, 0, 0.3, 0.1, network="hydra 0.9 0")
    write_json(place / "linf-0.2" / "curves.json", {"security": {"fmn": FMN}})
    (figure,) = threats.against_radius(setting_of(folder), Palette(["hydra"]))
    (line,) = figure.charts[0].series
    assert [p.x for p in line.points] == [pytest.approx(8 / 255), 0.3]
