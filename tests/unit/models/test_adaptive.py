"""What adaptive batching learns: how many rows are worth joining."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meshnode.models.execution import RateLimit
from meshnode.models.serving.adaptive import TRY_AGAIN, AdaptiveRows
from meshnode.models.serving.crowding import FIRST_LOOK, LAST_LOOK, Crowd
from meshnode.models.serving.rate_limit import TokenBucket

if TYPE_CHECKING:
    from collections.abc import Callable


def settled(latency_s: Callable[[int], float], most: int = 64, batches: int = 60) -> int:
    """Return the rows that it comes to where a batch of so many rows takes so long."""
    adaptive = AdaptiveRows(most)
    adaptive.observe(1, latency_s(1))
    for _ in range(batches):
        adaptive.observe(adaptive.rows, latency_s(adaptive.rows))
    return adaptive.rows


@pytest.mark.parametrize(
    ("latency_s", "rows"),
    [
        (lambda rows: 0.001 * rows, 1),
        (lambda rows: 0.001 + 0.0001 * rows, 64),
        (lambda rows: 0.001 * max(1, rows / 8), 8),
        (lambda rows: 0.1 * rows**0.9, 8),  # 10 times as slow as one row is the limit
        (lambda rows: 0.04 + 0.02 * rows, 16),  # likewise: of 60 ms
        (lambda rows: 0.004 * rows if rows == 2 else 0.001 + 0.0005 * rows, 32),
    ],
    ids=["no gain", "gain throughout", "gain up to 8", "slow", "slow from the start", "a dip at 2"],
)
def test_rows_grow_while_they_bring_throughput(
    latency_s: Callable[[int], float], rows: int
) -> None:
    assert settled(latency_s) == rows


def test_the_most_is_never_exceeded() -> None:
    assert settled(lambda _rows: 0.001, most=12) == 12
    assert AdaptiveRows(1).rows == 1


def test_nothing_is_known_at_first_and_larger_sizes_are_tried_step_by_step() -> None:
    adaptive = AdaptiveRows(64)
    assert adaptive.rows == 2
    adaptive.observe(0, 1.0)
    adaptive.observe(2, 0.001)
    assert adaptive.rows == 4
    adaptive.observe(3, 0.001)  # counts for 3 to 4 rows
    assert adaptive.rows == 8
    assert "2: 0.500 ms, 4: 0.333 ms" in repr(adaptive)


def test_larger_sizes_are_tried_again_after_a_while() -> None:
    """They were slow while another model was busy, and are not any more."""
    adaptive = AdaptiveRows(64)
    adaptive.observe(1, 0.001)
    for _ in range(20):
        adaptive.observe(adaptive.rows, 0.001 * adaptive.rows)
    assert adaptive.rows == 1
    for _ in range(TRY_AGAIN + 30):
        adaptive.observe(adaptive.rows, 0.001)
    assert adaptive.rows == 64


def looks(crowd: Crowd, in_system: int, requests: int) -> list[int]:
    """Return which of so many requests take the queue."""
    return [number for number in range(requests) if crowd.queues(in_system)]


def test_a_lone_caller_is_sent_through_the_queue_ever_more_rarely() -> None:
    crowd = Crowd()
    taken = looks(crowd, 0, 20_000)
    assert taken[:5] == [63, 64, 65, 66, 131]
    assert len(taken) < 60
    assert not crowd.is_here


def test_a_crowd_is_found_and_stays_in_the_queue_until_that_is_empty() -> None:
    crowd = Crowd()
    assert looks(crowd, 0, FIRST_LOOK) == [FIRST_LOOK - 1]
    assert looks(crowd, 3, 500) == list(range(500))
    assert looks(crowd, 0, 10) == [0, 1, 2]
    assert repr(crowd) == f"<Crowd is_here=False, next look after {FIRST_LOOK - 6}>"
    for _ in range(9):
        looks(crowd, 0, LAST_LOOK)
    assert looks(crowd, 2, 2 * LAST_LOOK)[0] > FIRST_LOOK


def test_a_version_takes_its_burst_and_then_its_rate() -> None:
    bucket = TokenBucket(RateLimit(per_second=10, burst=2))
    assert [bucket.take(5.0) for _ in range(2)] == [0, 0]
    assert bucket.take(5.0) == pytest.approx(0.1)
    assert bucket.take(5.05) == pytest.approx(0.05)
    assert bucket.take(5.1) == 0
    assert bucket.take(5.1) == pytest.approx(0.1)
    assert [bucket.take(60.0) for _ in range(2)] == [0, 0]
    assert bucket.take(60.0) > 0
    assert repr(bucket) == "<TokenBucket 10/s>"


@pytest.mark.parametrize("per_second", [3.0, 7.0, 0.1])
def test_the_rate_holds_in_the_long_run(per_second: float) -> None:
    bucket = TokenBucket(RateLimit(per_second=per_second, burst=1))
    end = 100 / per_second
    taken = sum(bucket.take(step * end / 5000) == 0 for step in range(5000))
    assert 98 <= taken <= 101
