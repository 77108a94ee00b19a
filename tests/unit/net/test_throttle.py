"""Token buckets by source."""

from __future__ import annotations

import pytest

from meshnode.throttle import Throttle, source_of


def test_a_source_has_its_burst_and_then_its_rate() -> None:
    throttle = Throttle(burst=3, refill_s=10.0, max_sources=8)
    assert [throttle.take("a", 0.0) for _ in range(4)] == [0, 0, 0, 10.0]
    assert throttle.take("b", 0.0) == 0
    assert throttle.take("a", 9.0) == pytest.approx(1.0)
    assert throttle.take("a", 10.0) == 0
    assert throttle.take("a", 10.0) == 10.0


def test_looking_counts_nothing() -> None:
    throttle = Throttle(burst=1, refill_s=10.0, max_sources=8)
    assert not throttle.is_spent("a", 0.0)
    assert not throttle.is_spent("a", 0.0)
    throttle.take("a", 0.0)
    assert throttle.is_spent("a", 9.9)
    assert not throttle.is_spent("a", 10.0)


def test_a_flood_from_everywhere_is_bounded_and_leaves_known_sources_alone() -> None:
    throttle = Throttle(burst=2, refill_s=10.0, max_sources=10)
    throttle.take("known", 0.0)
    allowed = sum(throttle.take(f"stranger {number}", 0.0) == 0 for number in range(10_000))
    assert allowed == 9 + 2  # those with a row, and what they share
    assert throttle.take("known", 0.0) == 0
    assert repr(throttle) == "<Throttle of 11 sources>"
    throttle.take("later", 100.0)
    assert repr(throttle) == "<Throttle of 1 sources>"


@pytest.mark.parametrize(
    ("host", "source"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "20010db800000000"),
        ("2001:db8::ffff:1", "20010db800000000"),
        ("fe80::1%eth0", "fe80000000000000"),
        ("no:address", "no:address"),
        ("", ""),
    ],
)
def test_what_one_host_can_have_counts_as_one_source(host: str, source: str) -> None:
    assert source_of(host) == source
