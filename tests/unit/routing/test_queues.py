"""A told queue is worth less the older it is: it goes back to what is usual there."""

from __future__ import annotations

import math

import pytest

from meshnode.routing.alike import Alike
from meshnode.routing.load import ReplicaLoad
from meshnode.routing.queues import UsualQueue
from meshnode.wire.messages import LoadReport


def usually_eight() -> ReplicaLoad:
    """A replica of four slots that has eight requests on average, and said at second 20 that it has none."""
    load = ReplicaLoad(4, 100.0)
    for tenth in range(200):
        load.report(LoadReport(6 if tenth % 2 else 10, 4, 100.0), tenth / 10, 0.0)
    load.report(LoadReport(0, 4, 100.0), 20.0, 0.0)
    return load


def test_a_young_report_counts_as_it_is_and_an_old_one_as_the_average() -> None:
    load = usually_eight()
    assert load.wait_ms(20.0) == 0.0
    waits = [load.wait_ms(20.0 + age_s) for age_s in (0.2, 0.6, 1.0, 9.0)]
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx((8 + 1 - 4) / 4 * 100.0, rel=0.05)


def test_a_long_queue_that_was_told_long_ago_counts_no_more_either() -> None:
    load = usually_eight()
    load.report(LoadReport(40, 4, 100.0), 20.5, 0.0)
    assert load.wait_ms(20.5) == pytest.approx(925.0)
    assert load.wait_ms(29.0) < 150.0


def test_what_was_sent_since_counts_beside_the_average() -> None:
    load = usually_eight()
    before_ms = load.wait_ms(25.0)
    load.start(25.0, 0.0)
    assert load.wait_ms(25.0) == pytest.approx(before_ms + 25.0)


def test_quick_runs_are_forgotten_sooner_than_long_ones() -> None:
    kept = []
    for service_ms in (10.0, 100.0):
        usual = UsualQueue()
        usual.held(8, 1.0)
        usual.told(4, service_ms, None)
        kept.append(usual.kept_s)
    assert kept[0] < kept[1] / 4


def test_a_replica_that_was_hardly_heard_of_is_taken_for_one_like_others_of_its_class() -> None:
    alike = Alike()
    loads = [ReplicaLoad(4, 100.0) for _ in range(3)]
    for load in loads:
        load.alike = alike
    for tenth in range(50):
        loads[0].report(LoadReport(10, 4, 100.0), tenth / 10, 0.0)
    loads[1].report(LoadReport(0, 4, 100.0), 5.0, 0.0)
    assert loads[1].wait_ms(5.0) == 0.0
    assert loads[1].wait_ms(9.0) > 100.0
    assert loads[2].wait_ms(9.0) > 100.0, (
        "nothing was heard of it, which is not to say that it is idle"
    )


def test_without_any_average_a_report_counts_whatever_its_age() -> None:
    load = ReplicaLoad(4, 100.0)
    assert load.wait_ms(1.0) == 0.0
    load.report(LoadReport(11, 4, 100.0), 1.0, 0.0)
    assert load.wait_ms(60.0) == pytest.approx(200.0)


def test_the_written_out_form_is_the_formula() -> None:
    usual = UsualQueue()
    usual.held(8, 1.0)
    usual.told(4, 100.0, None)
    assert usual.expected(2, 0.0) == 2
    left = math.exp(-0.5 / usual.kept_s)
    assert usual.expected(2, 0.5) == pytest.approx(usual.level + left * (2 - usual.level))
    load = ReplicaLoad(4, 100.0)
    load.report(LoadReport(8, 4, 100.0), 0.0, 0.0)
    load.report(LoadReport(2, 4, 100.0), 1.0, 0.0)
    queued = load.usual_queue.expected(2, 0.5)
    assert load.wait_ms(1.5) == pytest.approx(max(0.0, queued + 1 - 4) / 4 * 100.0)
    assert "UsualQueue" in repr(usual)
