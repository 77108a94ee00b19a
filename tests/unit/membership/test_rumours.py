"""The queue of rumours: newest first, a bounded number of times, within its room."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.membership.messages import Rumour
from meshnode.membership.rumours import SMALLEST_RUMOUR_BYTES, RumourQueue, retransmit_limit

MUCH = 10_000


def rumour(subject: int, counter: int = 0, origin: bytes = b"") -> Rumour:
    return Rumour(bytes([subject]) * 20, 1, counter, 0, origin)


@pytest.mark.parametrize(("size", "limit"), [(1, 4), (9, 4), (10, 8), (99, 8), (1000, 16)])
def test_the_limit_grows_with_the_logarithm_of_the_mesh(size: int, limit: int) -> None:
    assert retransmit_limit(4, size) == limit


def test_a_rumour_is_told_as_often_as_the_limit_says() -> None:
    queue = RumourQueue()
    queue.add(rumour(1))
    assert [len(queue.take(MUCH, 3)) for _ in range(5)] == [1, 1, 1, 0, 0]
    assert len(queue) == 0


def test_what_was_told_least_goes_first_and_among_equals_the_newest() -> None:
    queue = RumourQueue()
    queue.add(rumour(1))
    queue.take(MUCH, 9)
    queue.add(rumour(2))
    queue.add(rumour(3))
    assert [told.subject[0] for told in queue.take(MUCH, 9)] == [3, 2, 1]
    assert repr(queue) == "<RumourQueue [0, 2, 1]>"
    assert [told.subject[0] for told in queue.take(MUCH, 9)] == [3, 2, 1]


def test_a_newer_rumour_evicts_the_older_about_the_same_subject_and_starts_afresh() -> None:
    queue = RumourQueue()
    queue.add(rumour(1))
    queue.take(MUCH, 2)
    queue.add(rumour(1, counter=1))
    assert [queue.take(MUCH, 2) for _ in range(3)] == [[rumour(1, 1)], [rumour(1, 1)], []]


def test_room_is_filled_greedily_past_a_rumour_that_does_not_fit() -> None:
    queue = RumourQueue()
    queue.add(rumour(1))
    queue.add(rumour(2, origin=b"o" * 20))
    assert queue.take(SMALLEST_RUMOUR_BYTES + 5, 9) == [rumour(1)]
    assert len(queue) == 2


def test_dropping_an_unknown_subject_changes_nothing() -> None:
    queue = RumourQueue()
    queue.drop(b"x" * 20)
    assert len(queue) == 0


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 2**40)), max_size=40),
    st.lists(st.integers(0, 400), max_size=40),
)
def test_taken_rumours_always_fit_and_none_is_told_too_often(
    added: list[tuple[int, int]], budgets: list[int]
) -> None:
    queue = RumourQueue()
    for subject, counter in added:
        queue.add(rumour(subject, counter))
    told: dict[Rumour, int] = {}
    for budget in budgets:
        taken = queue.take(budget, 4)
        assert sum(len(msgspec.msgpack.encode(each)) for each in taken) <= budget
        for each in taken:
            told[each] = told.get(each, 0) + 1
    assert all(count <= 4 for count in told.values())
