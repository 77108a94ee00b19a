from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.limits import MAX_CLAIMED_REQUESTS
from meshnode.routing.load import (
    MAX_ERROR,
    MAX_RHO,
    MIN_SERVICE_MS,
    Flight,
    LoadBook,
    Path,
    ReplicaLoad,
)
from meshnode.types import NodeId
from meshnode.wire.messages import LoadReport

ALPHA, BETA, GAMMA = NodeId("alpha"), NodeId("beta"), NodeId("gamma")


def test_own_requests_count_before_any_report() -> None:
    load = ReplicaLoad(slots=2, service_ms=10.0)
    flights = [load.start(1.0, 1.0) for _ in range(3)]
    assert (load.queued, load.outstanding) == (3, 3)
    # The first two found a free slot; the third waits for half a service time of the two.
    assert [flight.predicted_ms for flight in flights] == [10.0, 10.0, 15.0]


def test_a_report_replaces_what_it_counted_and_keeps_what_was_on_its_way() -> None:
    load = ReplicaLoad(1, 10.0)
    first = load.start(now=1.000, rtt_ms=20.0)
    load.start(now=1.050, rtt_ms=20.0)
    load.start(now=1.095, rtt_ms=20.0)
    # The answer arrives at 1.100; it was sent 10 ms before, and counted what had been sent 10 ms
    # before that: the second request, but not the third.
    load.finish(first, 1.100, True, LoadReport(in_system=6, slots=1, service_ms=12.0))
    assert (load.in_system, load.queued, load.outstanding) == (6, 7, 2)
    assert load.reported_at == pytest.approx(1.090)
    assert load.service_ms == 12.0


def test_a_replica_that_claims_to_be_idle_holds_at_least_what_was_sent_to_it() -> None:
    load = ReplicaLoad(1, 10.0)
    for _ in range(5):
        load.start(1.0, 0.0)
    load.report(LoadReport(0, 1, 10.0), made_at=2.0, rtt_ms=0.0)
    assert load.queued == 5


def test_an_older_report_changes_nothing() -> None:
    load = ReplicaLoad(1, 10.0)
    load.report(LoadReport(3, 2, 5.0), made_at=2.0, rtt_ms=1.0)
    load.report(LoadReport(9, 9, 9.0), made_at=1.9, rtt_ms=1.0)
    assert (load.in_system, load.slots, load.service_ms) == (3, 2, 5.0)


@pytest.mark.parametrize("service_ms", [math.nan, math.inf, -math.inf])
def test_a_report_that_is_no_number_leaves_the_service_time(service_ms: float) -> None:
    load = ReplicaLoad(1, 10.0)
    load.report(LoadReport(-5, 0, service_ms), made_at=1.0, rtt_ms=1.0)
    assert (load.in_system, load.slots, load.service_ms) == (0, 1, 10.0)


def test_absurd_reports_are_brought_into_range() -> None:
    load = ReplicaLoad(1, 10.0)
    load.report(LoadReport(10**12, 10**12, 0.0), made_at=1.0, rtt_ms=1.0)
    assert (load.in_system, load.slots, load.service_ms) == (
        MAX_CLAIMED_REQUESTS,
        MAX_CLAIMED_REQUESTS,
        MIN_SERVICE_MS,
    )


def test_rho_rises_with_slow_answers_and_fades_with_time() -> None:
    load = ReplicaLoad(1, 9.0)
    assert load.rho(0.0) == 1.0
    for number in range(100):
        load.finish(load.start(number, 0.0), number + 0.05, True)  # 50 ms, predicted 9 + 1
    rho = load.rho(99.05)
    assert rho == pytest.approx(5.0, rel=0.01)
    assert load.rho(109.05) == pytest.approx(1 + (rho - 1) / math.e)
    assert load.rho(1e6) == pytest.approx(1.0)


def test_rho_stays_within_one_and_eight() -> None:
    load = ReplicaLoad(1, 9.0)
    for number in range(100):
        load.finish(load.start(number * 100, 0.0), number * 100 + 90, True)
    assert load.rho(99 * 100 + 90) == pytest.approx(MAX_RHO, rel=0.01)
    for number in range(1000):
        load.finish(load.start(1e5 + number, 0.0), 1e5 + number, True)
    assert load.rho(2e5) == 1.0


def test_a_quick_failure_says_nothing_about_speed_and_a_slow_one_does() -> None:
    load = ReplicaLoad(1, 9.0)
    load.finish(load.start(0.0, 0.0), 0.0, False)
    assert load.rho(0.0) == 1.0
    load.finish(load.start(1.0, 0.0), 2.0, False)
    assert load.rho(2.0) == pytest.approx(1.7)


def test_the_error_rate_follows_outcomes_and_fades() -> None:
    load = ReplicaLoad(1, 9.0)
    assert load.error_rate(0.0) == 0.0
    load.finish(load.start(0.0, 0.0), 0.0, False)
    assert load.error_rate(0.0) == pytest.approx(0.2)
    assert load.error_rate(10.0) == pytest.approx(0.2 / math.e)
    for _ in range(100):
        load.finish(load.start(10.0, 0.0), 10.0, False)
    assert load.error_rate(10.0) == MAX_ERROR
    load.finish(load.start(10.0, 0.0), 10.0, True)
    assert load.error_rate(10.0) == pytest.approx(MAX_ERROR * 0.8)
    load.finish(load.start(10.0, 0.0), 10.0, None)
    assert load.error_rate(10.0) == pytest.approx(MAX_ERROR * 0.8)


def test_a_new_replica_is_taken_to_be_as_fast_as_the_fastest_that_reported() -> None:
    book = LoadBook(first_service_ms=10.0)
    assert book.load(ALPHA, "digits", 1, slots=4).service_ms == 10.0
    book.load(ALPHA, "digits", 1).report(LoadReport(0, 4, 30.0), 1.0, 1.0)
    assert book.load(BETA, "digits", 1).service_ms == 30.0
    book.load(BETA, "digits", 1).report(LoadReport(0, 4, 3.0), 1.0, 1.0)
    assert book.load(GAMMA, "digits", 1).service_ms == 3.0
    assert book.load(GAMMA, "digits", 2).service_ms == 10.0
    assert book.load(ALPHA, "digits", 1) is book.load(ALPHA, "digits", 1)
    assert book.load(ALPHA, "digits", 1).slots == 4


def test_what_is_forgotten_starts_anew() -> None:
    book = LoadBook(first_service_ms=10.0)
    load = book.load(ALPHA, "digits", 1)
    book.load(BETA, "digits", 1)
    path = book.path(ALPHA)
    assert repr(book) == "<LoadBook 2 replicas, 1 paths>"
    for node in (ALPHA, ALPHA, BETA):
        book.forget(node, "digits", 1)
    book.forget_path(ALPHA)
    assert repr(book) == "<LoadBook 0 replicas, 0 paths>"
    assert book.load(ALPHA, "digits", 1) is not load
    assert book.path(ALPHA) is not path


def test_reprs_tell_the_state() -> None:
    load = ReplicaLoad(4, 2.5)
    flight = load.start(1.0, 0.0)
    assert repr(load) == ("<ReplicaLoad 1/4 in system, 1 own, 2.5 ms, rho 1.00, errors 0.00>")
    assert repr(flight) == "<Flight since 1.000, predicted 2.5 ms>"
    assert repr(Path()) == "<Path down None ms>"


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data())
def test_counts_are_conserved_whatever_the_order_of_events(data: st.DataObject) -> None:
    """Starts, ends of all kinds, and reports with changing round trips, in any order."""
    load = ReplicaLoad(2, 5.0)
    open_flights: list[Flight] = []
    now = 0.0
    for _ in range(data.draw(st.integers(1, 60))):
        now += data.draw(st.sampled_from([0.0, 0.001, 0.3, 7.0]))
        rtt_ms = data.draw(st.sampled_from([0.0, 1.0, 500.0]))
        kind = data.draw(st.sampled_from(["start", "start", "finish", "report"]))
        report = LoadReport(data.draw(st.integers(-3, 50)), 2, 5.0)
        if kind == "start":
            open_flights.append(load.start(now, rtt_ms))
        elif kind == "finish" and open_flights:
            index = data.draw(st.integers(0, len(open_flights) - 1))
            ok = data.draw(st.sampled_from([True, False, None]))
            with_report = report if data.draw(st.booleans()) else None
            load.finish(open_flights.pop(index), now, ok, with_report)
        else:
            load.report(report, now - data.draw(st.sampled_from([0.0, 0.2, 5.0])), rtt_ms)
        assert load.outstanding == len(open_flights)
        assert load.outstanding <= load.queued <= load.in_system + load.outstanding
        assert 1.0 <= load.rho(now) <= MAX_RHO
        assert 0.0 <= load.error_rate(now) <= MAX_ERROR
    for flight in open_flights:
        load.finish(flight, now, None)
    assert (load.outstanding, load.queued) == (0, load.in_system)
