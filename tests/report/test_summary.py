"""Tables and pictures of one run and of several, against figures worked out by hand."""

import io
import json
import math

import pytest
from PIL import Image
from rich.console import Console
from scipy.stats import binomtest

from hydraprune.core.errors import CheckpointError
from hydraprune.core.results import Record
from hydraprune.core.threat import ThreatModel
from hydraprune.report import as_markdown, as_table, draw, read_records, rows
from hydraprune.report.picture import pictured


def record(stage, pruner, kept, clean, robust, **more):
    values = {
        "stage": stage, "pruner": pruner, "sparsity": 1 - kept / 1000, "kept": kept, "total": 1000,
        "clean_accuracy": clean, "robust_accuracy": robust, "samples": 200, "threat": ThreatModel(eps="8/255"),
        "seed": 0, "seconds": 1.0,
    }  # fmt: skip
    return Record(**values | more)


def write(folder, *records):
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps([record.plain() for record in records]))
    return folder


@pytest.fixture
def runs(tmp_path):
    """Three seeds of a dense net and two pruned ones."""
    return [
        write(
            tmp_path / f"seed{seed}",
            record("pretrain", None, 1000, 0.9, {"pgd-50x10": 0.6}, seed=seed),
            record("hydra-0.9/finetune", "hydra", 100, clean, {"pgd-50x10": robust}, seed=seed),
            record("magnitude-0.9/finetune", "magnitude", 100, 0.75, {"pgd-50x10": 0.45}, seed=seed),
        )
        for seed, (clean, robust) in enumerate([(0.80, 0.50), (0.81, 0.54), (0.85, 0.55)])
    ]


def test_a_single_run(runs):
    dense, hydra, magnitude = rows(runs[:1])
    assert dense.plain() == {
        "stage": "pretrain", "pruner": "dense", "sparsity": 0, "kept": 1000, "total": 1000, "runs": 1,
        "figures": {
            "clean": {"mean": 0.9, "std": None, "values": [0.9], "samples": 200},
            "pgd-50x10": {"mean": 0.6, "std": None, "values": [0.6], "samples": 200},
        },
    }  # fmt: skip
    assert (hydra.pruner, hydra.kept, hydra.figures["clean"].mean) == ("hydra", 100, 0.8)
    assert magnitude.pruner == "magnitude"


def test_several_seeds(runs):
    _, hydra, magnitude = rows(runs)
    assert hydra.runs == 3
    clean, robust = hydra.figures["clean"], hydra.figures["pgd-50x10"]
    assert clean.values == [0.80, 0.81, 0.85]
    assert clean.mean == pytest.approx(0.82)
    assert clean.std == pytest.approx(math.sqrt((0.02**2 + 0.01**2 + 0.03**2) / 2))
    assert robust.mean == pytest.approx(0.53)
    assert robust.std == pytest.approx(math.sqrt((0.03**2 + 0.01**2 + 0.02**2) / 2))
    assert magnitude.figures["clean"].std == pytest.approx(0, abs=1e-12)


def test_a_network_that_only_some_runs_hold(runs, tmp_path):
    more = write(tmp_path / "more", record("random-0.9/finetune", "random", 100, 0.5, {"pgd-50x10": 0.2}))
    table = rows([*runs, more])
    assert [(row.pruner, row.runs) for row in table] == [
        ("dense", 3), ("hydra", 3), ("magnitude", 3), ("random", 1),
    ]  # fmt: skip


def test_an_attack_that_only_some_runs_made_is_no_figure(tmp_path):
    one = write(tmp_path / "one", record("finetune", "hydra", 100, 0.8, {"pgd": 0.5, "autoattack": 0.4}))
    two = write(tmp_path / "two", record("finetune", "hydra", 100, 0.8, {"pgd": 0.5}))
    (row,) = rows([one, two])
    assert row.figures.keys() == {"clean", "pgd"}


def test_several_evaluations_of_a_network_are_one_row(tmp_path):
    """They are no repetitions: the network is the same."""
    run = write(
        tmp_path / "run",
        record("finetune", "hydra", 100, 0.8, {"pgd": 0.5}),
        record("finetune", "hydra", 100, 0.7, {"autoattack": 0.4}, samples=50),
    )
    (row,) = rows([run])
    assert row.runs == 1
    assert {name: (f.mean, f.samples) for name, f in row.figures.items()} == {
        "clean": (0.8, 200), "pgd": (0.5, 200), "autoattack": (0.4, 50),
    }  # fmt: skip


def test_attacks_on_fewer_images_say_so(tmp_path):
    robust = {"pgd": 0.5, "autoattack": 0.4}
    run = write(tmp_path / "run", record("finetune", "hydra", 100, 0.8, robust, robust_samples={"autoattack": 20}))
    (row,) = rows([run])
    assert {name: figure.samples for name, figure in row.figures.items()} == {
        "clean": 200, "pgd": 200, "autoattack": 20,
    }  # fmt: skip


def test_markdown(runs):
    assert as_markdown(rows(runs)) == (
        "| network | sparsity % | weights kept | clean % | pgd-50x10 % |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| dense | 0.0 | 1,000 of 1,000 | 90.0 ± 0.0 | 60.0 ± 0.0 |\n"
        "| hydra | 90.0 | 100 of 1,000 | 82.0 ± 2.6 | 53.0 ± 2.6 |\n"
        "| magnitude | 90.0 | 100 of 1,000 | 75.0 ± 0.0 | 45.0 ± 0.0 |\n"
    )
    assert "| dense | 0.0 | 1,000 of 1,000 | 90.0 | 60.0 |\n" in as_markdown(rows(runs[:1]))


def test_markdown_where_an_attack_is_missing(tmp_path):
    run = write(
        tmp_path / "run",
        record("pretrain", None, 1000, 0.9, {"pgd": 0.6}),
        record("finetune", "hydra", 5, 0.8, {"fgsm": 0.5}, total=12_345),
    )
    assert as_markdown(rows([run])).splitlines()[2:] == [
        "| dense | 0.0 | 1,000 of 1,000 | 90.0 | 60.0 | - |",
        "| hydra | 99.5 | 5 of 12,345 | 80.0 | - | 50.0 |",
    ]


def test_a_table_for_the_terminal(runs):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(as_table(rows(runs)))
    text = console.export_text()
    for cell in ("network", "sparsity %", "pgd-50x10 %", "dense", "100 of 1,000", "82.0 ± 2.6"):
        assert cell in text


@pytest.mark.parametrize(
    ("attacks", "panels"), [(["pgd"], 2), (["pgd", "autoattack"], 3), (["pgd", "autoattack", "worst-case"], 3), ([], 1)]
)
def test_the_picture_has_a_panel_for_two_attacks_and_for_clean_accuracy(tmp_path, attacks, panels):
    robust = dict.fromkeys(attacks, 0.5)
    run = write(
        tmp_path / "run",
        record("pretrain", None, 1000, 0.9, robust),
        *[record(f"hydra-{kept}", "hydra", kept, 0.8, robust) for kept in (100, 50, 10)],
    )
    draw(rows([run]), tmp_path / "new" / "picture.png", "title")
    with Image.open(tmp_path / "new" / "picture.png") as image:
        image.verify()
        assert image.format == "PNG"
        assert image.size == (598 * panels, 494)


def lines(table):
    """The (label, x, y, ends of the bar) of every line, panel by panel."""
    return [
        [(one.name, [(p.x, p.y, p.low, p.high) for p in one.points]) for one in chart.series]
        for chart in pictured(table)
    ]


def test_the_lines_are_means_against_compression_with_standard_deviations(runs):
    robust, clean = lines(rows(runs))
    assert [name for name, _ in robust] == [name for name, _ in clean] == ["hydra", "magnitude", "dense"]
    bar = 100 * math.sqrt((0.03**2 + 0.01**2 + 0.02**2) / 2)
    assert robust[0][1] == [pytest.approx((10, 53, 53 - bar, 53 + bar))]
    assert clean[0][1][0][:2] == pytest.approx((10, 82))
    assert robust[2][1][0][1] == pytest.approx(60)


def test_points_are_in_order_of_sparsity_and_the_bar_of_a_single_run_is_its_interval(tmp_path):
    networks = [record(f"hydra-{kept}", "hydra", kept, kept / 1000, {"pgd": 0.1}) for kept in (10, 500, 100)]
    _, clean = lines(rows([write(tmp_path / "run", *networks)]))
    ((_, points),) = clean
    assert [(x, y) for x, y, _, _ in points] == [pytest.approx(p) for p in [(2, 50), (10, 10), (100, 1)]]
    exact = binomtest(100, 200).proportion_ci(0.95, method="wilson")
    assert points[0][2:] == pytest.approx((100 * exact.low, 100 * exact.high), abs=0.01)


def test_a_method_has_one_colour_in_all_panels_and_no_other_has_it(tmp_path):
    methods = ["hydra", "snip", "magnitude", "grasp", "random"]
    networks = [record(f"{m}-0.9", m, 100, 0.8, {"pgd": 0.5, "autoattack": 0.4}) for m in methods]
    charts = pictured(rows([write(tmp_path / "run", *networks)]))
    styles = {(one.name, one.style) for chart in charts for one in chart.series}
    assert [len(chart.series) for chart in charts] == [5, 5, 5]
    assert len(styles) == len({style for _, style in styles}) == 5


def test_more_methods_than_lines_are_rows_with_the_best_on_top(tmp_path):
    methods = [f"m{number}" for number in (3, 0, 7, 5, 8, 1, 2, 6, 4, 9)]
    networks = [
        record(f"{m}-{kept}", m, kept, 0.9, {"pgd": int(m[1]) / 10 * kept / 100})
        for m in methods
        for kept in (100, 11, 10)
    ]
    table = rows([write(tmp_path / "run", *networks)])
    robust, clean = pictured(table)
    assert [*robust.x_ticks.values()] == [*clean.x_ticks.values()] == [f"m{number}" for number in range(10)]
    # 98.9 and 99 % are two.
    assert [one.name for one in robust.series] == ["90 %", "98.9 %", "99 %"]
    for chart, values in ((robust, [10 * number for number in range(10)]), (clean, [90] * 10)):
        found = {point.x: point.y for point in chart.series[0].points}
        assert found == {number: pytest.approx(value) for number, value in enumerate(values)}
    draw(table, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as image:
        assert image.height < 494


def test_a_picture_of_a_dense_network_alone(tmp_path):
    run = write(tmp_path / "run", record("pretrain", None, 1000, 0.9, {"pgd": 0.6}))
    draw(rows([run]), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_records_are_read_and_checked(tmp_path, runs):
    assert [r.stage for r in read_records(runs[0])] == ["pretrain", "hydra-0.9/finetune", "magnitude-0.9/finetune"]
    with pytest.raises(CheckpointError, match=r"results\.json is missing"):
        read_records(tmp_path / "nowhere")
    (runs[0] / "results.json").write_text("[{]")
    with pytest.raises(CheckpointError, match=r"results\.json is unreadable"):
        rows(runs)
    (runs[0] / "results.json").write_text('[{"stage": "a", "sparcity": 1}]')
    with pytest.raises(CheckpointError, match=r"results\.json\[0\]: unknown key 'sparcity'; did you mean 'sparsity'\?"):
        rows(runs)
