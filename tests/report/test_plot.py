"""Charts as geometry: where values and ticks lie."""

import pytest

from hydraprune.report.chart import Chart, Point, Series
from hydraprune.report.plot import FRAME, laid_out, rounded


def lines(*series, **options):
    return laid_out(Chart(series, "x", "y", **options))


def test_points_lie_between_the_ticks_where_they_should():
    one = Series("one", 0, [Point(0, 0, "a"), Point(5, 25, "b"), Point(10, 100, "c")])
    found = lines(one)
    assert [tick.label for tick in found.y_ticks] == ["0", "20", "40", "60", "80", "100"]
    assert (found.y_ticks[0].at, found.y_ticks[-1].at) == (FRAME.bottom, FRAME.top)
    (a, b, c) = found.drawn[0].marks
    assert (a[1], b[1], c[1]) == (FRAME.bottom, FRAME.bottom - (FRAME.bottom - FRAME.top) / 4, FRAME.top)
    assert b[0] == pytest.approx((a[0] + c[0]) / 2)
    assert [mark[2] for mark in found.drawn[0].marks] == ["a", "b", "c"]
    assert found.drawn[0].path == f"M{a[0]} {a[1]}L{b[0]} {b[1]}L{c[0]} {c[1]}"


def test_a_logarithmic_axis_is_spaced_by_ratio():
    found = lines(Series("", 0, [Point(x, 1, "") for x in (1, 10, 100)]), log_x=True, x_ticks={10: "90"})
    a, b, c = (x for x, _, _ in found.drawn[0].marks)
    assert b == pytest.approx((a + c) / 2, abs=0.1)
    assert [(tick.at, tick.label) for tick in found.x_ticks] == [(b, "90")]
    # All ticks are shown, whether there is a point or not.
    single = lines(Series("", 0, [Point(10, 1, "")]), log_x=True, x_ticks={10: "90", 20: "95", 100: "99"})
    assert [tick.at for tick in single.x_ticks] == sorted({tick.at for tick in single.x_ticks})
    counts = lines(Series("", 0, [Point(0, 0.6, ""), Point(1, 900, "")], line="area"), y_range=(0.6, None), log_y=True)
    assert [tick.label for tick in counts.y_ticks] == ["1", "10", "100", "1000"]
    assert counts.drawn[0].marks[0][1] == FRAME.bottom


def test_steps_hold_their_value_up_to_the_next():
    found = lines(Series("", 0, [Point(0, 1, ""), Point(1, 0, "")], line="step"))
    (x0, y0, _), (x1, y1, _) = found.drawn[0].marks
    assert found.drawn[0].path == f"M{x0} {y0}H{x1}V{y1}"


def test_a_rule_crosses_the_whole_chart_and_does_not_stretch_the_horizontal_axis():
    found = lines(
        Series("", 0, [Point(5, 1, ""), Point(6, 2, "")]), Series("d", "ink", [Point(1, 1, "d")], line="rule")
    )
    assert found.drawn[1].path.startswith(f"M{FRAME.left} ")
    assert found.drawn[1].path.endswith(f"H{FRAME.right}")
    assert found.drawn[0].marks[0][0] < FRAME.left + 10


def test_bars_have_the_height_of_their_ends():
    found = lines(Series("", 0, [Point(0, 50, "", 0, 100)]))
    assert found.drawn[0].bars == [(found.drawn[0].marks[0][0], FRAME.top, FRAME.bottom)]


@pytest.mark.parametrize(
    ("low", "high", "options", "values"),
    [
        (0, 1, {}, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.13, 0.94, {}, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.13, 0.94, {"inside": True}, [0.2, 0.4, 0.6, 0.8]),
        (1, 3, {"inside": True, "whole": True}, [1, 2, 3]),
        (1, 100, {"inside": True, "whole": True}, [20, 40, 60, 80, 100]),
    ],
)
def test_ticks_are_round(low, high, options, values):
    assert rounded(low, high, **options) == pytest.approx(values)


@pytest.mark.parametrize("points", [[], [Point(1, 1, "")], [Point(1, 0.3, ""), Point(2, 0.3, "")]])
def test_charts_of_little_or_nothing(points):
    found = lines(Series("", 0, points))
    assert len({tick.label for tick in found.y_ticks}) == len(found.y_ticks) > 1
