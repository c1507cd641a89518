"""The section about what was exported: sizes, accuracies before and after, times."""

import json

import pytest

from hydraprune.core.errors import SpecError
from hydraprune.core.files import write_json
from hydraprune.report import against_size, speeds
from hydraprune.report.artifacts import figure, table, timed
from hydraprune.report.experiment import settings_of
from hydraprune.report.picture import paint
from hydraprune.runs.folder import find_runs
from hydraprune.runs.latency import Latency
from hydraprune.runs.manifest import Manifest, digests
from report.folders import recipe, record, write_run
from report.test_page import page


def artifact(stage, name, size, settings, source, before=None, after=None):
    """What `hydraprune export` leaves."""
    place = stage / "export" / name
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(bytes(size))
    values = {
        "format": settings, "sha256": digests(place), "bytes": size, "dense_bytes": 10_000, "source": source,
        "sparsity": 0.9, "kept": 36, "total": 360, "layers": {"0.weight": (36, 360)}, "probe": 16, "difference": 0.05,
        "logit": 2.0, "rounds": settings.get("values") == "int8", "versions": {}, "before": before, "after": after,
    }  # fmt: skip
    known = {key: value for key, value in values.items() if key in Manifest.model_fields}
    write_json(place.with_name(f"{name}.json"), Manifest.parse(known, name).plain())
    return place


def times(ms=2.0):
    def one(runtime, scale):
        return [
            {"runtime": runtime, "batch": batch, "threads": 1, "ms": scale * ms * batch, "faster": 1 / scale,
             "quartiles": [scale * ms * batch / 2, 2 * scale * ms * batch], "difference": 0.0}
            for batch in (1, 8)
        ]  # fmt: skip

    shared = {"sparsity": 0.9, "clean": 0.5, "smaller": 4.0, "bytes": 2500}
    return Latency(
        machine={"device": "cpu x", "cores": 2}, versions={"torch": "2.15"}, repeats=5, seed=0, shape=(1, 8, 8),
        baseline=("a.hpk", "torch"),
        artifacts=[
            {"artifact": "a.hpk", "format": "packed-int8", "robust": 0.25, **shared, "times": one("torch", 1.0)},
            {"artifact": "b.onnx", "format": "onnx", **shared,
             "times": [*one("onnxruntime", 0.5), *one("openvino", 0.25)[:1]]},
        ],
    )  # fmt: skip


@pytest.fixture
def run(tmp_path):
    folder = write_run(tmp_path / "run", recipe())
    before = record("source", "hydra", 36, 0.8, 0.5)
    after = record("packed", "hydra", 36, 0.75, 0.4, robust_accuracy={"pgd": 0.45, "transfer": 0.4})
    source = "hydra 0.9 0"
    artifact(folder / "prune", "packed-int8.hpk", 2500, {"kind": "packed", "values": "int8"}, source, before, after)
    artifact(folder / "prune", "dense.safetensors", 10_000, {"kind": "dense"}, source)
    return folder


def variants(folder):
    (setting,) = settings_of(find_runs([folder]))
    return setting, setting.variants


def test_a_row_for_each_artifact(run):
    _, found = variants(run)
    rows = [(name, [cell.text for cell in cells]) for name, cells in table(found).rows]
    assert rows == [
        ("hydra 90 %", ["dense.safetensors", "dense", "10,000", "1.0", "not measured", "not measured", "2.5"]),
        ("hydra 90 %", ["packed-int8.hpk", "packed-int8", "2,500", "4.0", "80.0 → 75.0", "50.0 → 40.0", "2.5"]),
    ]


def test_robust_accuracy_against_bytes(run):
    setting, _ = variants(run)
    (chart,) = figure(setting).charts
    (series,) = chart.series
    assert (series.name, series.line) == ("packed-int8", "none")
    (point,) = series.points
    assert (point.x, point.y) == (2500, pytest.approx(40.0))
    assert point.low < 40 < point.high
    assert chart.log_x
    assert list(chart.x_ticks.items()) == [(2000.0, "2 kB"), (5000.0, "5 kB")]


def test_times_lie_beside_the_exports_or_in_the_run(run):
    _, found = variants(run)
    assert timed(found) == []
    write_json(run / "prune" / "export" / "latency.json", times().plain())
    write_json(run / "latency.json", times(ms=4.0).plain())
    first, second = timed(found)
    assert {first.title, second.title} == {"run", "run/prune/export"}
    inner = first if first.title == "run/prune/export" else second
    assert [(name, [cell.text for cell in cells]) for name, cells in inner.rows] == [
        ("a.hpk", ["packed-int8", "torch", "2,500", "4.0", "2", "1.00", "16", "1.00", "90.0", "50.0", "25.0"]),
        ("b.onnx", ["onnx", "onnxruntime", "2,500", "4.0", "1", "2.00", "8", "2.00", "90.0", "50.0", "–"]),
        ("b.onnx", ["onnx", "openvino", "2,500", "4.0", "0.5", "4.00", "–", "–", "90.0", "50.0", "–"]),
    ]
    assert inner.columns[4:8] == ["ms, 1 at a time, 1 thread", "×", "ms, 8 at a time, 1 thread", "×"]
    assert "faster than a.hpk in torch" in inner.caption


def test_the_page_shows_them_and_says_what_is_damaged(run, tmp_path):
    write_json(run / "prune" / "export" / "latency.json", times().plain())
    shown = page(run, out=tmp_path / "page.html")
    assert "What was exported" in "".join(shown.text)
    assert any("80.0 → 75.0" in row for row in shown.rows)
    assert any("onnxruntime" in row for row in shown.rows)
    (run / "prune" / "export" / "packed-int8.hpk").write_bytes(b"other")
    (run / "prune" / "export" / "latency.json").write_text("{}")
    artifact(run / "pretrain", "old.hpk", 100, {"kind": "packed"}, "another network")
    shown = page(run, out=tmp_path / "page.html")
    text = "".join(shown.text)
    assert not any("80.0 → 75.0" in row for row in shown.rows)
    assert any("dense.safetensors" in row for row in shown.rows)
    assert "prune/export/packed-int8.hpk left out" in text
    assert "speaks of other content" in text
    assert "prune/export/latency.json left out" in text
    assert "pretrain/export/old.hpk left out: it was made from other weights" in text


def test_runs_without_exports_have_no_section(tmp_path):
    write_run(tmp_path / "run", recipe())
    setting, found = variants(tmp_path / "run")
    assert table(found) is figure(setting) is None
    assert "What was exported" not in "".join(page(tmp_path / "run", out=tmp_path / "page.html").text)


def formatted(name):
    return times().artifacts[0].model_copy(update={"format": name})


def test_a_table_and_a_picture_of_times(tmp_path):
    titles, *rows = speeds(times())
    assert (titles[0], rows[0][0], rows[2][2]) == ("artifact", "a.hpk", "openvino")
    (chart,) = against_size(times())
    assert [(series.name, len(series.points)) for series in chart.series] == [("packed-int8", 1)]
    paint([chart], tmp_path / "l.png")
    assert (tmp_path / "l.png").read_bytes().startswith(b"\x89PNG")
    (dense,) = against_size(times().model_copy(update={"artifacts": [formatted("dense"), formatted("packed-int8")]}))
    paint([dense], tmp_path / "dense.png")
    assert (tmp_path / "dense.png").read_bytes().startswith(b"\x89PNG")
    unknown = times().model_copy(update={"artifacts": times().artifacts[1:]})
    assert against_size(unknown) == []


@pytest.mark.parametrize("sizes", [[7], [999, 1001], [10**3, 10**9], [3 * 10**6, 4 * 10**6]])
def test_ticks_enclose_the_sizes(sizes):
    found = [{**json.loads(times().artifacts[0].model_dump_json()), "bytes": size} for size in sizes]
    (chart,) = against_size(Latency.parse({**times().plain(), "artifacts": found}, "times"))
    ticks = list(chart.x_ticks)
    assert ticks[0] <= min(sizes) <= max(sizes) <= ticks[-1]
    assert len(ticks) <= 8


def test_times_that_cannot_be():
    with pytest.raises(SpecError, match="ms"):
        times(ms=-1.0)


def test_the_tip_of_an_accuracy_says_the_adversary(run):
    _, found = variants(run)
    tips = {cell.tip for _, cells in table(found).rows for cell in cells if "→" in cell.text}
    assert tips
    assert all(tip.startswith("on ") and "ℓ∞ " in tip for tip in tips)
