from __future__ import annotations

import random

import pytest

from meshnode.models.serving.run_average import RunAverage


def test_run_times_that_differ_by_chance_hardly_move_the_average() -> None:
    average, rng = RunAverage(1.0), random.Random(1)
    errors = []
    for _ in range(20_000):
        average.observe(rng.expovariate(1.0))
        errors.append(abs(average.mean - 1.0))
    assert sum(errors) / len(errors) < 0.1


@pytest.mark.parametrize(("factor", "runs"), [(10.0, 12), (0.1, 80)])
def test_another_speed_is_followed_within_few_runs(factor: float, runs: int) -> None:
    average, rng = RunAverage(1.0), random.Random(1)
    for _ in range(500):
        average.observe(rng.uniform(0.8, 1.2))
    for _ in range(runs):
        average.observe(factor * rng.uniform(0.8, 1.2))
    assert average.mean == pytest.approx(factor, rel=0.5)


def test_the_first_run_is_believed_where_nothing_was_before() -> None:
    average = RunAverage()
    average.observe(5.0)
    assert average.mean == 5.0
    assert repr(average) == "<RunAverage 5>"
