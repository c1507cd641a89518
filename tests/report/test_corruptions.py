"""The table of common corruptions: dense and pruned side by side."""

import pytest

from hydraprune.core.files import write_json
from hydraprune.report.corruptions import corruptions
from hydraprune.report.experiment import settings_of
from hydraprune.runs.folder import find_runs
from report.folders import cell, recipe, write_run, write_study
from report.test_page import page

LEVELS = [0.9, 0.8, 0.7, 0.6, 0.5]


def found(shift, samples=80):
    accuracy = {"jpeg_compression": [a - shift for a in LEVELS], "fog": [0.5 - shift] * 5}
    return {"samples": samples, "accuracy": accuracy, "mean_accuracy": 0.6 - shift}


@pytest.fixture
def runs(tmp_path):
    write_study(tmp_path / "study", range(2), [("hydra", 0.9)])
    for seed in range(2):
        place = tmp_path / "study" / cell(seed=seed)
        dense = {"built-in": found(0.02 * seed), "CIFAR-10-C": found(0.3, 40)}
        write_json(place / "pretrain" / "corruptions.json", {"network": "n", "seed": seed, "corrupted": dense})
        pruned = {"built-in": found(0.1 + 0.02 * seed, 60)}
        place = place / "prune" / "corruptions.json"
        write_json(place, {"network": "n", "seed": seed, "corrupted": pruned})
    return tmp_path / "study"


def test_each_source_has_a_table_of_means_and_spreads(runs):
    (setting,) = settings_of(find_runs([runs]))
    first, second = corruptions("title", setting.variants)
    assert (first.title, second.title) == ("title (built-in)", "title (CIFAR-10-C)")
    assert (first.columns, second.columns) == (["dense", "hydra 90 %"], ["dense"])
    assert [(name, [cell.text for cell in cells]) for name, cells in first.rows] == [
        ("mean", ["59.0 ± 1.4", "49.0 ± 1.4"]),
        ("jpeg compression", ["69.0 ± 1.4", "59.0 ± 1.4"]),
        ("fog", ["49.0 ± 1.4", "39.0 ± 1.4"]),
    ]
    assert first.rows[1][1][0].tip == "severities 1 to 5: 89.0, 79.0, 69.0, 59.0, 49.0"
    assert "on 60 to 80 images" in first.caption
    assert "on 40 images" in second.caption


def test_the_page_shows_them_and_survives_a_damaged_file(runs, tmp_path):
    shown = page(runs, out=tmp_path / "page.html")
    assert ["fog", "49.0 ± 1.4", "39.0 ± 1.4"] in shown.rows
    (runs / cell(seed=1) / "pretrain" / "corruptions.json").write_text('{"corrupted": {"built-in": {"samples": 0}}}')
    shown = page(runs, out=tmp_path / "page.html")
    assert ["fog", "50.0", "39.0 ± 1.4"] in shown.rows
    assert "left out: pretrain/corruptions.json: built-in." in "".join(shown.text)


def test_runs_without_them_have_no_table(tmp_path):
    write_run(tmp_path / "run", recipe())
    (setting,) = settings_of(find_runs([tmp_path]))
    assert corruptions("title", setting.variants) == []
