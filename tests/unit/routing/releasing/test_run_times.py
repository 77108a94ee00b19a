"""Quantiles of run times in buckets, and who has more of the slowest ones."""

from __future__ import annotations

import pytest

from meshnode.routing.releasing.run_times import RunTimes, quantile, slowest


def test_a_bucket_is_spread_over_its_width() -> None:
    times = RunTimes({10: 4, 20: 4})
    assert quantile([(times, 1.0)], 0.25) == 10.5
    assert quantile([(times, 1.0)], 0.5) == 11
    assert quantile([(times, 1.0)], 0.75) == 20.5
    assert quantile([(times, 1.0)], 1.0) == 21
    assert times.beyond(20.25) == 3
    assert repr(times) == "<RunTimes: 8 in 2 buckets>"


def test_classes_of_devices_count_as_they_are_weighed() -> None:
    quick, slow = RunTimes({10: 100}), RunTimes({50: 10})
    assert quantile([(quick, 1.0), (slow, 1.0)], 0.5) < 11
    assert quantile([(quick, 0.1), (slow, 9.0)], 0.5) > 50


def test_equal_versions_have_their_part_of_the_slowest() -> None:
    spread = dict.fromkeys(range(100), 10)
    for level in (0.5, 0.9, 0.99):
        beyond, among = slowest(RunTimes(spread), RunTimes(spread), level, 0.0)
        assert among == pytest.approx(2000 * (1 - level))
        assert beyond == pytest.approx(among / 2)


def test_the_old_versions_times_are_made_longer() -> None:
    spread = dict.fromkeys(range(100), 10)
    later = {bucket + 3: 10 for bucket in range(100)}
    beyond, among = slowest(RunTimes(spread), RunTimes(later), 0.9, 3.0)
    assert beyond == pytest.approx(among / 2)
    assert slowest(RunTimes(spread), RunTimes(later), 0.9, 0.0)[0] > among / 2
    assert slowest(RunTimes(spread), RunTimes(later), 0.9, 200.0)[0] == 0


def test_what_is_more_than_all_by_rounding_is_all() -> None:
    times = RunTimes({3: 7, 9: 1})
    assert quantile([(times, 0.1)], 1.0 + 1e-12) == 10
    assert slowest(times, times, 1.0 + 1e-12, 0.0)[0] == 0
