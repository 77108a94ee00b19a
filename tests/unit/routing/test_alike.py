from __future__ import annotations

import random

import pytest

from meshnode.routing.alike import ALIKE, Alike


def test_a_replica_alone_is_as_fast_as_it_says() -> None:
    assert Alike().evened("a", 12.5, 0.0) == 12.5


def test_averages_that_differ_by_chance_count_as_one() -> None:
    alike, rng = Alike(), random.Random(1)
    told = {name: 100 * rng.uniform(0.75, 1.3) for name in range(20)}
    for name, each in told.items():
        alike.evened(name, each, 0.0)
    evened = [alike.evened(name, each, 1.0) for name, each in told.items()]
    assert max(evened) / min(evened) < 1.01
    assert max(told.values()) / min(told.values()) > 1.5


def test_who_is_clearly_slower_stands_alone_at_once() -> None:
    alike = Alike()
    for name in range(5):
        alike.evened(name, 100.0, 0.0)
    alike.evened(0, 100.0, 1.0)
    assert alike.evened(0, 5 * ALIKE * 100.0, 1.01) == pytest.approx(1000.0)
    assert alike.evened(0, 5 * ALIKE * 100.0, 2.0) == pytest.approx(1000.0)
    assert alike.evened(1, 100.0, 2.0) == pytest.approx(100.0)


def test_who_is_gone_counts_no_more() -> None:
    alike = Alike()
    alike.evened("a", 100.0, 0.0)
    alike.evened("b", 150.0, 0.0)
    assert alike.evened("a", 100.0, 1.0) == pytest.approx(150.0**0.5 * 10)
    alike.forget("b")
    assert alike.evened("a", 100.0, 2.0) == 100.0
