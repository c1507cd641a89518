"""Layers, weights and masks of a run, against counts by brute force; and costs and curves against their definitions."""

import itertools
import json

import pytest
import torch

from hydraprune.core.tensors import load_tensors
from hydraprune.report.charts import Palette, certified, security
from hydraprune.report.costs import attack_on, by_class, changes
from hydraprune.report.experiment import settings_of
from hydraprune.report.folder import find_runs
from hydraprune.report.images import gallery
from hydraprune.report.inside import histograms, layers, overlap
from hydraprune.report.training import training
from report.folders import LAYERS, recipe, write_run


@pytest.fixture
def run(tmp_path):
    write_run(tmp_path / "run", recipe())
    (found,) = find_runs([tmp_path])
    return found


@pytest.fixture
def setting(run):
    (found,) = settings_of([run])
    return found


def test_the_share_that_each_layer_keeps(run):
    table = layers("", run)
    assert table.columns == ["hydra 50 %", "magnitude 50 %", "hydra 90 %", "magnitude 90 %"]
    assert [name for name, _ in table.rows] == list(LAYERS)
    assert [[cell.text for cell in cells] for _, cells in table.rows] == [
        ["50", "50", "9.72", "9.72"], ["50", "50", "10.1", "10.1"],
    ]  # fmt: skip
    assert table.rows[0][1][2].tip == "7 of 72 connections are kept"


def test_what_two_masks_share(run):
    table = overlap("", run)
    masks = [torch.cat([mask.flatten() for mask in network.masks().values()]) for network in run.pruned]
    for (i, one), (j, other) in itertools.product(enumerate(masks), repeat=2):
        both = sum(a and b for a, b in zip(one.tolist(), other.tolist(), strict=True))
        cell = table.rows[i][1][j]
        assert cell.text == ("·" if i == j else f"{100 * both / min(int(one.sum()), int(other.sum())):.0f}")
    # Magnitude pruning nests: what is left at 90 % is a part of what is left at 50 %.
    assert table.rows[1][1][3].text == "100"


def test_histograms_count_every_weight_once_and_tell_hydra_from_magnitude(run):
    found = histograms("", run, Palette(["hydra", "magnitude"]))
    for chart, network in zip(found.plots, run.pruned, strict=True):
        every, kept = (drawn.series.points[:-1] for drawn in chart.drawn)
        total = sum(torch.Size(shape).numel() for shape in LAYERS.values())
        for points, count in ((every, total), (kept, sum(int(mask.sum()) for mask in network.masks().values()))):
            assert sum(int(point.tip.split()[0].replace(",", "")) for point in points) == count
    weights = load_tensors(run.path / "pretrain" / "model.safetensors")[0]
    for chart, network in zip(found.plots, run.pruned, strict=True):
        cut = kept = 0
        for name, mask in network.masks().items():
            size = weights[name].abs()
            largest = sorted(size.flatten().tolist())[-int(mask.sum())]
            cut, kept = cut + int((size[mask] < largest).sum()), kept + int(mask.sum())
        assert chart.title == f"{network.name}: {100 * cut / kept:.1f} % would be cut"
    assert found.plots[1].title == "magnitude 50 %: 0.0 % would be cut"


def test_changed_answers_and_classes(setting):
    """In the folders, the first images are right: 72 of 80 for the dense network, 48 for hydra; confidence is 0.75."""
    (_, cells), *_ = changes("", setting.pruned).rows
    assert [cell.text for cell in cells] == ["30.0", "30.0", "0.0", "15.0", "15.0"]
    clean, robust = by_class(setting.pruned, None), by_class(setting.pruned, "pgd-50x10")
    assert clean.columns[0] == "hydra 50 %"
    assert [cells[0].text for _, cells in clean.rows] == ["−30"] * 4
    assert [cells[2].text for _, cells in robust.rows] == ["−40", "−40", "−40", "−45"]
    assert by_class(setting.pruned, "autoattack") is None
    assert attack_on(setting.pruned, "worst-case") == attack_on(setting.pruned, "pgd-50x10") == "pgd-50x10"


def test_security_curves_are_means_over_seeds(tmp_path):
    for seed in range(2):
        write_run(tmp_path / f"seed{seed}", recipe(seed=seed), sparsities=(0.5,))
    (setting,) = settings_of(find_runs([tmp_path]))
    (figure,) = security(setting, Palette(["hydra", "magnitude"]))
    (chart,) = figure.plots
    hydra, magnitude, dense = (drawn.series for drawn in chart.drawn)
    assert (figure.title, chart.title) == ("fmn", "50 % of weights removed")
    assert [(point.x, point.y) for point in hydra.points] == [
        (0.0, pytest.approx(60.5)),
        (0.1, pytest.approx(50.5)),
        (0.2, 0),
    ]
    assert (hydra.points[0].low, hydra.points[0].high) == (
        pytest.approx(59.793, abs=1e-3),
        pytest.approx(61.207, abs=1e-3),
    )
    assert (magnitude.name, dense.name, dense.dash) == ("magnitude", "dense", 2)


def test_certified_accuracy_counts_right_classes_with_at_least_that_radius(run, setting):
    radii = [(0.5, 1), (0.5, 1), (0.2, 1), (0.9, 0), (0.0, -1)]
    lines = [{"index": i, "label": 1, "prediction": p, "radius": r} for i, (r, p) in enumerate(radii)]
    (run.path / "pretrain" / "smoothing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (figure,) = certified(setting, Palette([]))
    dense = figure.plots[0].drawn[-1].series.points
    assert {point.x: point.y for point in dense}[0.0] == pytest.approx(60)
    for point in dense:
        assert point.y == pytest.approx(100 * sum(p == 1 and r >= point.x for r, p in radii) / 5)
    assert dense[-1].x == pytest.approx(0.5)


def test_examples_show_the_change_enlarged_around_grey(setting):
    found = gallery(setting.dense)
    assert (found.title, found.attack, found.amplified) == ("dense", "pgd-50x10", pytest.approx(5, rel=1e-3))
    assert [(e.label, e.prediction, e.attacked) for e in found.examples] == [(0, 0, 1), (1, 1, 2), (2, 2, 3)]
    assert found.examples[0].image.startswith("data:image/png;base64,")


def test_training_has_a_chart_for_each_stage_and_a_line_for_each_branch(setting):
    found = training(setting.experiments[0], Palette(["hydra", "magnitude"]))
    assert [chart.title for chart in found.plots] == [
        "pretrain: accuracy", "prune: validation robust accuracy", "pretrain: loss", "prune: loss",
    ]  # fmt: skip
    assert [series.name for series in found.legend] == ["hydra 90 %", "magnitude 90 %", "hydra 50 %", "magnitude 50 %"]
    assert [point.y for point in found.plots[2].drawn[0].series.points] == [2, 1, pytest.approx(2 / 3)]
