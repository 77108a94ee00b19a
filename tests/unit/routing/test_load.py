from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.limits import MAX_CLAIMED_REQUESTS
from meshnode.routing.load import (
    MAX_ERROR,
    MAX_RHO,
    MIN_SERVICE_MS,
    Flight,
    Path,
    ReplicaLoad,
)
from meshnode.routing.load_book import LoadBook
from meshnode.routing.request import RoutedRequest
from meshnode.routing.service_model import SizeModel
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


def answers(load: ReplicaLoad, count: int, took_s: float, at: float = 0.0) -> float:
    """Let a replica answer one request after another; return when the last one was."""
    for _ in range(count):
        flight = load.start(at, 0.0)
        at += took_s
        load.finish(flight, at, True)
    return at


def test_rho_rises_with_slow_answers_and_fades_with_time() -> None:
    load = ReplicaLoad(1, 9.0)
    assert load.rho(0.0) == 1.0
    ended = answers(load, 500, 0.05)  # 50 ms, predicted 9 + 1
    assert load.rho(ended) == pytest.approx(5.0, rel=0.12)
    assert load.rho(ended + 60) == 1.0


def test_one_slow_answer_proves_little_and_a_handful_does() -> None:
    once, often = ReplicaLoad(1, 9.0), ReplicaLoad(1, 9.0)
    assert once.rho(answers(once, 1, 0.03)) == 1.0
    assert often.rho(answers(often, 8, 0.05)) > 2.0


def test_a_replica_that_says_nothing_looks_slower_by_the_second() -> None:
    load = ReplicaLoad(4, 9.0)
    flights = [load.start(0.0, 0.0) for _ in range(4)]
    assert load.rho(0.01) == 1.0
    assert 1.0 < load.rho(0.03) < load.rho(0.1) <= MAX_RHO
    for flight in flights:
        load.finish(flight, 0.1, None)  # given up: they would have taken longer
    assert load.rho(0.1) > 2.0


def test_run_times_that_differ_by_chance_do_not_make_a_replica_look_slow() -> None:
    load, rng, now, worst = ReplicaLoad(1, 99.0), random.Random(1), 0.0, 1.0
    for _ in range(2000):
        now = answers(load, 1, rng.expovariate(10.0), now)
        worst = max(worst, load.rho(now))
    assert worst < 1.4


def test_a_replica_that_says_itself_how_slow_it_is_is_not_punished_twice() -> None:
    load = ReplicaLoad(1, 10.0)
    now = answers(load, 50, 0.1)
    assert load.rho(now) > 4.0
    load.report(LoadReport(0, 1, 100.0), now, 0.0)
    assert load.rho(now) == 1.0


def test_a_replica_that_says_that_it_has_recovered_is_judged_anew() -> None:
    load = ReplicaLoad(1, 100.0)
    now = answers(load, 50, 0.1)
    load.report(LoadReport(0, 1, 10.0), now, 0.0)
    assert load.rho(now) == 1.0


def test_rho_stays_within_one_and_eight() -> None:
    load = ReplicaLoad(1, 9.0)
    ended = answers(load, 100, 90.0)
    assert load.rho(ended) <= MAX_RHO
    ended = answers(load, 1000, 1.0, ended)
    assert load.rho(ended) == MAX_RHO
    load.report(LoadReport(0, 1, 5000.0), ended, 0.0)
    assert load.rho(answers(load, 100, 0.001, ended)) == 1.0


def test_a_failure_says_nothing_about_speed() -> None:
    load = ReplicaLoad(1, 9.0)
    load.finish(load.start(0.0, 0.0), 5.0, False)
    assert load.rho(5.0) == 1.0


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
    assert repr(load) == ("<ReplicaLoad 1/4 in system, 1 own, 2.5 ms, errors 0.00>")
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


def test_a_replica_that_has_not_reported_is_believed_to_take_what_its_profile_says() -> None:
    """So an A100 is told from a laptop before the first request."""
    book = LoadBook(first_service_ms=10.0)
    fast = book.load(ALPHA, "digits", 1, slots=4, profiled_ms=0.5)
    slow = book.load(BETA, "digits", 1, profiled_ms=80.0)
    assert (fast.service_ms, slow.service_ms) == (0.5, 80.0)
    book.load(BETA, "digits", 1, profiled_ms=40.0)  # it was measured again
    assert slow.service_ms == 40.0
    slow.report(LoadReport(0, 1, 60.0), made_at=1.0, rtt_ms=1.0)
    book.load(BETA, "digits", 1, profiled_ms=40.0)
    assert slow.service_ms == 60.0  # what is seen under load counts more
    assert book.load(GAMMA, "digits", 1, profiled_ms=1e300).service_ms < 1e9


def slow_for_now() -> ReplicaLoad:
    """A replica that took 10 ms for a minute, and says 100 ms since second 60; idle."""
    load = ReplicaLoad(4, 10.0)
    for second in range(61):
        load.report(LoadReport(0, 4, 10.0), float(second), 0.0)
    flight = load.start(60.4, 0.0)
    load.report(LoadReport(0, 4, 100.0), 60.5, 0.0)
    load.finish(flight, 60.6, True, LoadReport(0, 4, 100.0))
    return load


def test_an_idle_replica_that_was_slow_gets_one_request_after_two_seconds() -> None:
    load = slow_for_now()
    assert load.tried_ms(61.0) == 100.0
    assert load.tried_ms(62.7) == pytest.approx(10.0, rel=0.1)
    load.start(62.7, 0.0)
    assert load.tried_ms(62.7) == 100.0, "one at a time"


def test_trials_that_are_slow_become_rarer_up_to_one_in_ten_seconds() -> None:
    load, now, at = slow_for_now(), 60.6, []
    while now < 110.0:
        now += 0.1
        if load.tried_ms(now) < 100.0:
            at.append(now)
            flight = load.start(now, 0.0)
            load.finish(flight, now + 0.1, True, LoadReport(0, 4, 100.0))
    assert 5 <= len(at) <= 7
    assert at[-1] - at[-2] > 9.9


def test_a_trial_that_is_quick_is_followed_by_more_at_once_until_the_average_has_followed() -> None:
    load, now = slow_for_now(), 63.0
    for said_ms in (95.0, 90.0, 10.0):
        assert load.tried_ms(now) < 50.0
        flight = load.start(now, 0.0)
        now += 0.01
        load.finish(flight, now, True, LoadReport(0, 4, said_ms))
    assert load.tried_ms(now) == load.service_ms == 10.0
    assert load.rho(now) == 1.0


def test_a_replica_that_stays_slow_is_a_slow_one_and_is_not_tried_for_ever() -> None:
    load = slow_for_now()
    for second in range(61, 400):
        load.report(LoadReport(0, 4, 100.0), float(second), 0.0)
    assert load.tried_ms(400.0) == 100.0


def test_a_replica_that_became_twice_as_slow_is_tried_too_or_it_would_never_be_used_again() -> None:
    load = slow_for_now()
    load.report(LoadReport(0, 4, 20.0), 61.0, 0.0)
    assert load.tried_ms(63.0) == pytest.approx(10.0, rel=0.1)


def test_a_lying_replica_that_is_idle_is_tried_again_and_forgiven_by_one_quick_answer() -> None:
    load = ReplicaLoad(4, 10.0)
    for number in range(8):
        load.finish(load.start(number / 10, 0.0), number / 10 + 0.1, True)
    assert load.rho(0.9) > 2.0
    assert load.rho(2.9) == 1.0
    flight = load.start(2.9, 0.0)
    assert load.rho(2.9) > 2.0, "one at a time"
    load.finish(flight, 2.91, True)
    assert load.rho(2.92) == 1.0


def test_the_time_of_a_failure_says_nothing_of_speed() -> None:
    """Of fifty requests that one lost link ends the breaker counts one; none of them was slow."""
    load = ReplicaLoad(4, 10.0)
    flights = [load.start(0.0, 0.0) for _ in range(50)]
    load.finish(flights[0], 1.0, False)
    for flight in flights[1:]:
        load.finish(flight, 1.0, None, timed=False)
    assert load.rho(1.0) == 1.0


def test_a_replica_that_is_gone_is_not_compared_with_others_again_by_its_last_answers() -> None:
    book = LoadBook(first_service_ms=10.0)
    loads = {node: book.load(node, "digits", 1) for node in (ALPHA, BETA)}
    for load in loads.values():
        book.sort_in(load, "digits", 1, "gpu")
        load.report(LoadReport(0, 1, 10.0), 1.0, 0.0)
    alike = loads[BETA].alike
    flight = loads[ALPHA].start(2.0, 1.0)
    book.forget(ALPHA, "digits", 1)
    loads[ALPHA].finish(flight, 3.0, True, LoadReport(0, 1, 10.0))
    assert repr(alike) == "<Alike: 1 replicas>"


def test_a_run_time_longer_than_the_answer_took_is_not_believed() -> None:
    learned = []

    class Sizes(SizeModel):
        def observe(self, request: RoutedRequest, run_ms: float, mean_ms: float) -> None:
            del request, mean_ms
            learned.append(run_ms)

    sizes, load = Sizes(), ReplicaLoad(1, 10.0)
    flight = load.start(1.0, 1.0)
    flight.request, flight.sizes = RoutedRequest("digits"), sizes
    load.finish(flight, 1.02, True, run_ms=1e9)
    assert learned == [pytest.approx(20.0)]
