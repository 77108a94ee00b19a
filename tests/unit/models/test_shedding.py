"""Which requests a replica refuses at once, and which at their turn."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import Saturated
from meshnode.models.execution import DynamicBatching
from meshnode.models.serving.admission import level_of
from meshnode.models.serving.batching import Batcher, Job, Refuse, Start
from meshnode.models.serving.shedding import check_in_time, expected_wait_s, is_too_late
from meshnode.types import InferRequest, Priority, RoutingHints


def may_wait(in_system: int, remaining_s: float, priority: Priority = Priority.NORMAL) -> bool:
    """Ask at a replica of four slots with runs of 0.2 s."""
    try:
        check_in_time(in_system, 4, 0.2, remaining_s, priority)
    except Saturated:
        return False
    return True


def test_a_request_waits_for_those_before_it_divided_by_the_slots() -> None:
    assert [expected_wait_s(count, 4, 0.2) for count in (0, 3, 4, 7, 43)] == [
        0.0, 0.0, pytest.approx(0.05), pytest.approx(0.2), pytest.approx(2.0)
    ]  # fmt: skip


def test_nobody_is_refused_while_a_slot_is_free_whatever_the_estimate_says() -> None:
    assert may_wait(3, 0.001)
    assert not may_wait(4, 0.001)


def test_the_queue_ends_where_answers_would_be_too_late() -> None:
    length = next(count for count in range(1000) if not may_wait(count, 2.0))
    assert expected_wait_s(length, 4, 0.2) + 0.2 == pytest.approx(1.6, abs=0.06)


def test_a_request_with_more_time_may_stand_further_back() -> None:
    assert not may_wait(60, 2.0)
    assert may_wait(60, 30.0)


def test_what_is_more_urgent_finds_room_where_others_are_refused() -> None:
    assert [may_wait(20, 2.0, each) for each in Priority] == [False, True, True]
    assert [may_wait(32, 2.0, each) for each in Priority] == [False, False, True]
    assert [may_wait(42, 2.0, each) for each in Priority] == [False, False, False]


def test_who_is_refused_hears_how_long_the_backlog_takes() -> None:
    with pytest.raises(Saturated, match="43 requests are before it here") as refused:
        check_in_time(43, 4, 0.2, 2.0, Priority.NORMAL)
    assert refused.value.retry_after_s == pytest.approx(2.0)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.integers(0, 10_000), st.integers(1, 64), st.floats(0, 100), st.floats(0, 1e5),
    st.sampled_from(Priority),
)  # fmt: skip
def test_who_is_kept_out_would_be_kept_out_further_back_and_with_less_time_too(
    in_system: int, slots: int, service_s: float, remaining_s: float, priority: Priority
) -> None:
    def is_refused(count: int, left_s: float) -> bool:
        try:
            check_in_time(count, slots, service_s, left_s, priority)
        except Saturated:
            return True
        return False

    if is_refused(in_system, remaining_s):
        assert is_refused(in_system + 1, remaining_s)
        assert is_refused(in_system, remaining_s / 2)


# At its turn.


def test_a_run_begins_only_if_an_ordinary_one_could_end_in_time() -> None:
    assert not is_too_late(0.2, 0.16)
    assert is_too_late(0.2, 0.14)


def test_whose_turn_comes_too_late_makes_room_for_those_behind() -> None:
    batcher: Batcher[Job] = Batcher(None, max_rows=1, max_waiting=8)
    batcher.run_s = 0.2
    late, next_one, last = Job(1, None, 1.1), Job(1, None, 5.0), Job(1, None, 1.1)
    for job in (late, next_one, last):
        assert batcher.arrive(job, 0.0) == []
    refused, started = batcher.free(0, 1.0)
    assert isinstance(refused, Refuse)
    assert refused.job is late
    assert isinstance(refused.error, Saturated)
    assert started == Start(0, (next_one,))
    # Nobody is behind the last one, so it may try.
    assert batcher.free(0, 1.0) == [Start(0, (last,))]


def test_a_free_place_stays_free_if_all_of_a_batch_come_too_late() -> None:
    batcher: Batcher[Job] = Batcher(None, max_rows=1, max_waiting=8)
    batcher.run_s = 10.0
    for _ in range(2):
        batcher.arrive(Job(1, None, 5.0), 0.0)
    first, second = batcher.free(0, 1.0)
    assert isinstance(first, Refuse)
    assert isinstance(second, Start)
    assert not batcher.has_free


# Priorities where the model has levels.


@pytest.mark.parametrize(
    ("priority", "named", "levels", "level"),
    [
        (Priority.HIGH, None, 5, 1),
        (Priority.NORMAL, None, 5, 0),
        (Priority.LOW, None, 5, 5),
        (Priority.LOW, 2, 5, 2),
        (Priority.HIGH, None, 0, 0),
        (Priority.HIGH, 3, 0, 3),
    ],
)
def test_a_priority_is_a_level_of_the_models_own_unless_the_request_names_one(
    priority: Priority, named: int | None, levels: int, level: int
) -> None:
    parameters = {} if named is None else {"priority": named}
    request = InferRequest("m", (), parameters=parameters, hints=RoutingHints(priority=priority))
    batching = DynamicBatching(priority_levels=levels, default_priority_level=3 if levels else 0)
    assert level_of(request, batching) == level


def test_a_model_without_batching_has_no_levels() -> None:
    assert level_of(InferRequest("m", (), hints=RoutingHints(priority=Priority.HIGH)), None) == 0
