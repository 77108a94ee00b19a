from __future__ import annotations

import math
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.routing.waits import Waits


def test_reports_are_believed_before_any_answer() -> None:
    assert Waits().expected(3.0, 0.0) == 3.0


def test_reports_that_come_true_rule() -> None:
    waits, rng = Waits(), random.Random(1)
    for number in range(100):
        wait = rng.uniform(0, 4)
        waits.observe(wait + rng.uniform(-0.1, 0.1), wait, number / 10)
    assert waits.expected(0.0, 10.0) < 0.2
    assert waits.expected(4.0, 10.0) > 3.8


def test_reports_that_never_come_true_are_replaced_by_what_own_requests_met() -> None:
    waits = Waits()
    for number in range(20):
        waits.observe(0.0, 5.0, number / 10)
    assert waits.expected(0.0, 2.0) > 4.0


def test_what_own_requests_met_fades_so_that_a_long_queue_is_asked_again() -> None:
    waits = Waits()
    for number in range(20):
        waits.observe(0.0, 5.0, number / 10)
    assert waits.expected(0.0, 60.0) < 0.01


waited = st.floats(0, 1e9)


def test_reports_that_say_nothing_of_the_wait_are_replaced_by_the_average_that_was_met() -> None:
    """As with news that is five seconds old: what is told varies, and the wait with it does not."""
    waits, rng = Waits(), random.Random(2)
    for number in range(200):
        waits.observe(rng.uniform(0, 8), rng.uniform(1, 2), number / 10)
    assert waits.slope < 0.1
    assert 1.0 < waits.expected(0.0, 20.0) < waits.expected(8.0, 20.0) < 2.2


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(waited, waited, st.floats(0, 100)), max_size=40), waited)
def test_a_forecast_is_a_wait_and_more_told_never_means_less(
    seen: list[tuple[float, float, float]], told: float
) -> None:
    waits, now = Waits(), 0.0
    for claimed, met, pause_s in seen:
        now += pause_s
        waits.observe(claimed, met, now)
    assert 0.0 <= waits.slope <= 1.0
    expected = waits.expected(told, now + 1.0)
    assert 0.0 <= expected < math.inf
    assert expected <= (1 + 1e-9) * waits.expected(told + 1.0, now + 1.0) + 1e-9
