from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.limits import MAX_REQUESTS_IN_FLIGHT, MIN_CONCURRENCY
from meshnode.routing.concurrency import FORGET_S, LEAST_SAMPLES, TARGET_SHARE, ConcurrencyLimit


def answers(
    limit: ConcurrencyLimit,
    took_s: float,
    in_flight: int,
    start: float,
    seconds: float,
    timeout_s: float = 2.0,
) -> float:
    """Let 100 answers a second come for a while; return when it is over."""
    now = start
    while now < start + seconds:
        limit.answered(took_s, timeout_s, 0.05, in_flight, now)
        now += 0.01
    return now


def test_there_is_no_limit_while_answers_come_in_good_time() -> None:
    limit = ConcurrencyLimit()
    answers(limit, TARGET_SHARE * 2.0, 3000, 0.0, 60.0)
    assert limit.limit == math.inf
    assert not limit.is_limited


def test_answers_that_take_longer_than_their_share_of_the_callers_time_bring_a_limit() -> None:
    """By Little's law: what is in flight, times the target over the time that answers took."""
    limit = ConcurrencyLimit()
    answers(limit, 1.6, 160, 0.0, 0.2)
    assert limit.limit == 160 * 0.8 / 1.6 + math.sqrt(160)
    assert repr(limit) == "<ConcurrencyLimit 92.6, answers take 1.6e+03 ms>"


def test_one_period_halves_the_limit_at_most() -> None:
    limit = ConcurrencyLimit()
    answers(limit, 100.0, 160, 0.0, 0.2, timeout_s=1.0)
    assert limit.limit == 80 + math.sqrt(160)


def test_the_limit_changes_once_per_answers_time_since_a_change_shows_no_sooner() -> None:
    limit = ConcurrencyLimit()
    now = answers(limit, 1.6, 160, 0.0, 0.2)
    first = limit.limit
    now = answers(limit, 1.6, 92, now, 1.3)
    assert limit.limit == first
    answers(limit, 1.6, 92, now, 0.4)
    assert limit.limit < first


def test_a_few_slow_answers_are_no_period() -> None:
    limit = ConcurrencyLimit()
    for number in range(LEAST_SAMPLES):
        assert not limit.is_limited
        limit.answered(30.0, 2.0, 0.05, 10, 5.0 + number)
    assert limit.is_limited


def test_a_limit_that_is_in_use_grows_while_answers_are_quick_and_one_that_is_not_stays() -> None:
    limit = ConcurrencyLimit()
    now = answers(limit, 1.6, 160, 0.0, 0.2)
    now = answers(limit, 0.1, 20, now, 2.0)
    before = limit.limit
    now = answers(limit, 0.1, 20, now, 2.0)
    assert limit.limit == before
    answers(limit, 0.1, 90, now, 2.0)
    assert limit.limit > before + 5 * math.sqrt(before)


def test_it_is_open_again_once_it_was_not_needed_for_a_while() -> None:
    limit = ConcurrencyLimit()
    now = answers(limit, 1.6, 160, 0.0, 0.2)
    now = answers(limit, 0.1, 5, now, FORGET_S - 1)
    assert limit.is_limited
    answers(limit, 0.1, 5, now, 2.0)
    assert not limit.is_limited


def test_a_caller_in_a_hurry_is_measured_by_what_a_free_replica_takes() -> None:
    limit = ConcurrencyLimit()
    for number in range(1000):
        limit.answered(0.09, 0.01, 0.05, 100, number / 100)
    assert not limit.is_limited


def test_requests_that_found_no_place_count_as_twice_too_slow() -> None:
    limit = ConcurrencyLimit()
    for number in range(20):
        limit.failed(0.01, 64, number / 100)
    assert limit.limit == 64 * 0.5 + 8


def test_what_was_before_a_long_silence_is_no_part_of_the_next_period() -> None:
    limit = ConcurrencyLimit()
    now = answers(limit, 0.1, 10, 0.0, 1.0)
    assert 90 < limit.per_s < 110
    answers(limit, 0.1, 10, now + 1000, 0.25)
    assert limit.per_s > 60


def test_a_backlog_is_worked_off_as_fast_as_answers_come() -> None:
    limit = ConcurrencyLimit()
    assert limit.retry_after_s(50) == 0.0
    answers(limit, 0.1, 10, 0.0, 1.0)
    assert 4 < limit.retry_after_s(500) < 6


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.floats(0, 1e6), st.floats(0, 1e6), st.integers(1, 5000), st.floats(0, 20)),
        min_size=1,
        max_size=200,
    )
)
def test_whatever_answers_take_the_limit_is_a_number_of_requests(
    steps: list[tuple[float, float, int, float]],
) -> None:
    limit = ConcurrencyLimit()
    now = 0.0
    for took_s, timeout_s, in_flight, passed_s in steps:
        now += passed_s
        limit.answered(took_s, timeout_s, 0.0, in_flight, now)
        assert limit.limit >= MIN_CONCURRENCY
        assert limit.limit <= 2 * MAX_REQUESTS_IN_FLIGHT or not limit.is_limited
        assert limit.retry_after_s(in_flight) >= 0
