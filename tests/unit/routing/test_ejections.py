from __future__ import annotations

import math

from bench.routing_ejections import Ejections, growth, last_by_second


def test_the_least_growth_of_any_gateway_counts() -> None:
    seen = [Ejections([1.0, 1.0]), Ejections([2.0, 2.0]), Ejections([4.0, 3.0])]
    assert growth(seen) == 1.5
    assert growth([Ejections([0.0]), Ejections([1.0])]) == 0.0, "it was never open"


def test_times_after_returns_are_compared_on_average() -> None:
    seen = [Ejections(left_s=[0.0]), Ejections(left_s=[1.0, 3.0]), Ejections(left_s=[7.0, 9.0])]
    assert last_by_second(seen) == 4.0
    assert math.isclose(last_by_second([seen[0], seen[0]]), 0.0)
