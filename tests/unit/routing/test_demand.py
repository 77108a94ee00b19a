"""How much capacity is needed, in units of the median device."""

from __future__ import annotations

import pytest

from meshnode.routing.demand import FULL, Look, ReplicaSight, Sight, look_of, need_of
from meshnode.state.scaling import Scaling


def looked(*replicas: ReplicaSight, **others: object) -> Look:
    """Return one look at replicas whose median device runs two requests at once."""
    return look_of(Sight((1.0,), 2.0, replicas, **others), 0.0)  # type: ignore[arg-type]


def units(look: Look, **targets: float) -> float:
    return need_of([look], Scaling(1, 40, **targets), 2.0).units


def test_a_request_in_flight_on_a_fast_device_counts_for_the_time_that_it_would_take_on_the_median_one() -> (
    None
):
    slow = looked(ReplicaSight(1.0, 2, 2))
    fast = looked(ReplicaSight(10.0, 2, 2))  # ten times the requests, each in a tenth of the time
    assert slow.in_flight == 2
    assert fast.in_flight == 20
    assert units(slow, concurrency=1) == 2
    assert units(fast, concurrency=1) == 20


def test_a_device_that_runs_more_at_once_is_no_faster() -> None:
    wide = looked(ReplicaSight(4.0, 8, 8))
    assert wide.in_flight == 8
    assert wide.busy == 4


def test_requests_per_second_need_what_the_target_divides_them_into() -> None:
    looks = [Look(at, asked=90, over_s=1.0) for at in range(4)]
    assert need_of(looks, Scaling(1, 40, qps=30), 2.0).units == pytest.approx(3)


def test_the_greatest_need_decides_and_is_named() -> None:
    look = looked(ReplicaSight(1.0, 2, 1, cpu=0.9), asked=100)
    need = need_of([look], Scaling(1, 40, qps=10, cpu=0.5, concurrency=1), 2.0)
    assert need.units == pytest.approx(10)
    assert need.why.startswith("qps: 100.0 requests per second")


def test_no_target_lets_less_be_held_than_is_worked_with() -> None:
    look = looked(*[ReplicaSight(1.0, 2, 2)] * 6)
    assert units(look, concurrency=1000) == pytest.approx(6 / FULL)


@pytest.mark.parametrize("name", ["cpu", "accelerator", "memory"])
def test_a_share_in_use_needs_its_ratio_to_the_target(name: str) -> None:
    much = ReplicaSight(2.0, 2, 0, cpu=0.9, accelerator=0.9, memory=0.9)
    little = ReplicaSight(1.0, 2, 0, cpu=0.3, accelerator=0.3, memory=0.3)
    assert units(looked(much, little), **{name: 0.7}) == pytest.approx((2 * 0.9 + 0.3) / 0.7)


def test_who_does_not_tell_a_share_is_taken_to_be_as_the_others() -> None:
    used = [ReplicaSight(1.0, 2, 0, accelerator=0.6), ReplicaSight(3.0, 2, 0)]
    assert units(looked(*used), accelerator=0.6) == pytest.approx(4)


def test_a_latency_twice_the_run_time_needs_half_of_the_capacity_idle() -> None:
    look = looked(*[ReplicaSight(1.0, 2, 1, 0.05)] * 4)
    assert look.busy == 2
    assert units(look, latency_ms=100) == pytest.approx(4)


def test_a_latency_below_the_run_time_does_not_need_endless_capacity() -> None:
    look = looked(*[ReplicaSight(1.0, 2, 1, 0.05)] * 4)
    assert units(look, latency_ms=10) == pytest.approx(10)


def test_requests_that_wait_beyond_what_is_wanted_need_more_than_what_runs() -> None:
    calm = looked(*[ReplicaSight(1.0, 2, 2)] * 4)
    late = looked(*[ReplicaSight(1.0, 2, 8)] * 4)
    assert units(late, queue=1) > 2 * units(calm, queue=1)


def test_what_piles_up_for_want_of_replicas_is_not_taken_for_demand() -> None:
    """Arrivals of 20 a second that run for 50 ms keep one in flight; the rest waits for want of replicas."""
    piled = ReplicaSight(1.0, 2, 60, 0.05)
    assert units(looked(piled, asked=20), concurrency=1) == pytest.approx(1.25)


def test_what_is_in_flight_counts_where_nobody_tells_how_much_is_asked() -> None:
    assert units(looked(ReplicaSight(1.0, 2, 60, 0.05)), concurrency=1) == 60


def test_nothing_is_needed_where_nothing_happens() -> None:
    assert units(looked(), concurrency=1, qps=1, queue=1, latency_ms=1, cpu=0.5) == 0
    assert need_of([], Scaling(1, 40, qps=1), 1.0).units == 0
