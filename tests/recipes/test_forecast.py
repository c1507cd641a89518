"""How long a run will take."""

import pytest

from hydraprune.core.objective import Clock
from hydraprune.recipes.forecast import Forecast, span


def lines(seconds_per_step, epochs=10, later=30, first=60.0):
    """What is told of steps of equal length, of which the first takes long, in a stage of 20 steps an epoch."""
    now, told = iter([first + seconds_per_step * n for n in range(200)]), []
    hook = Forecast(later, told.append, lambda: next(now))
    for step in range(1, 20 * epochs):
        hook.on_step(Clock(step, 20, epochs), 8, 0.5)
    return told


def test_the_first_step_counts_for_nothing_and_one_line_is_told():
    (line,) = lines(3.0)
    # After four more steps of 3 s: 195 of 200 are left, and 600 of the stages after it.
    assert line == "about 10 min to go in this stage, and 30 min for the stages after it"


def test_without_a_stage_after_it_there_is_one_figure():
    (line,) = lines(3.0, later=0)
    assert line == "about 10 min to go in this stage"


@pytest.mark.parametrize(("seconds", "epochs", "later"), [(0.1, 10, 10), (2.0, 1, 0)])
def test_a_short_run_is_not_forecast(seconds, epochs, later):
    assert lines(seconds, epochs, later) == []


@pytest.mark.parametrize(("seconds", "said"), [(40.2, "40 s"), (720, "12 min"), (12600, "3.5 h"), (181440, "2.1 days")])
def test_spans(seconds, said):
    assert span(seconds) == said
