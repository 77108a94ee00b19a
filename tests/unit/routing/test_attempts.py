from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from meshnode.errors import (
    Cancelled,
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
    LinkLost,
    MeshError,
    ModelNotFound,
    NoReplica,
    NotServing,
    Saturated,
)
from meshnode.limits import NEW_RELAY_S
from meshnode.routing.breaker import BreakerState, Verdict
from meshnode.routing.load import LinkState
from meshnode.routing.request import RoutedRequest
from meshnode.routing.tries import Await, GiveUp, Try, Wait
from meshnode.types import NodeId, NodeState
from meshnode.wire.messages import LoadReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.routing.attempts import Attempts
    from meshnode.routing.router import Router
    from meshnode.routing.table import Replica

    MakeRouter = Callable[..., Router]


def a_try(attempts: Attempts, now: float) -> Try:
    step = attempts.next(now)
    assert isinstance(step, Try), step
    return step


def given_up(attempts: Attempts, now: float) -> MeshError:
    step = attempts.next(now)
    assert isinstance(step, GiveUp), step
    return step.error


def outstanding(router: Router) -> int:
    candidates = router.candidates("digits", None).ready
    return sum(each.load.outstanding for each in candidates)


def states(router: Router) -> set[BreakerState]:
    return {each.breaker.state for each in router.candidates("digits", None).ready}


def test_a_request_that_succeeds_takes_one_try(make_router: MakeRouter) -> None:
    router = make_router("alpha", "beta")
    attempts = router.plan(RoutedRequest("digits", None, 30.0), 100.0)
    assert attempts.header == ""
    step = a_try(attempts, 100.0)
    assert outstanding(router) == 1
    assert step.remaining_s == 30.0
    attempts.first_byte(0.0)
    attempts.succeeded(100.01, LoadReport(0, 4, 5.0))
    attempts.close(100.02)
    assert outstanding(router) == 0
    assert step.route.candidate.load.service_ms == 5.0
    assert "attempts=1; reason=" in attempts.header
    assert isinstance(attempts.next(100.03), GiveUp)


def test_a_lost_link_is_retried_on_another_node_and_told(make_router: MakeRouter) -> None:
    router = make_router("alpha", "beta")
    attempts = router.plan(RoutedRequest("digits", 1, 30.0), 0.0)
    first = a_try(attempts, 0.0)
    attempts.failed(LinkLost("gone"), 0.1)
    second = a_try(attempts, 0.1)
    assert first.route.replica.node != second.route.replica.node
    assert second.remaining_s == pytest.approx(29.9)
    name = first.route.replica.node_name
    assert attempts.header.endswith(f'attempts=2; reason=only-candidate; tried="{name}:link_lost"')
    assert first.route.candidate.breaker.state is BreakerState.OPEN


def test_there_are_three_tries_at_most_on_three_nodes(make_router: MakeRouter) -> None:
    router = make_router("alpha", "beta", "gamma", "delta")
    attempts = router.plan(RoutedRequest("digits", 1, 30.0), 0.0)
    nodes = set()
    for _ in range(3):
        nodes.add(a_try(attempts, 0.0).route.replica.node)
        attempts.failed(LinkLost("gone"), 0.0)
    assert len(nodes) == 3
    assert isinstance(given_up(attempts, 0.0), LinkLost)
    assert len(attempts.tried) == 3
    assert "; attempts=3; " in attempts.header


def test_the_second_retry_leaves_the_regions_that_failed(make_router: MakeRouter) -> None:
    router = make_router("alpha", "beta", "gamma", ("far", "us"))
    router.rtt_measured(NodeId("far"), 0.3)
    attempts = router.plan(RoutedRequest("digits", 1, 30.0), 0.0)
    regions = []
    for _ in range(3):
        regions.append(a_try(attempts, 0.0).route.replica.region)
        attempts.failed(LinkLost("gone"), 0.0)
    assert regions == ["eu", "eu", "us"]


def test_the_second_retry_stays_where_there_is_no_other_region(make_router: MakeRouter) -> None:
    attempts = make_router("alpha", "beta", "gamma").plan(RoutedRequest("digits", 1, 30.0), 0.0)
    for _ in range(3):
        a_try(attempts, 0.0)
        attempts.failed(LinkLost("gone"), 0.0)
    assert len(attempts.tried) == 3


@pytest.mark.parametrize(
    "error",
    [InvalidRequest("shape"), Cancelled("away"), DeadlineExceeded("t")],
)
def test_what_another_replica_cannot_mend_is_not_retried(
    error: MeshError, make_router: MakeRouter
) -> None:
    router = make_router("alpha", "beta")
    attempts = router.plan(RoutedRequest("digits", 1, 30.0), 0.0)
    a_try(attempts, 0.0)
    attempts.failed(error, 0.1)
    assert given_up(attempts, 0.1) is error
    assert given_up(attempts, 0.2) is error
    assert states(router) == {BreakerState.CLOSED}


def test_nothing_is_retried_after_the_first_byte(make_router: MakeRouter) -> None:
    router = make_router("alpha", "beta")
    attempts = router.plan(RoutedRequest("digits", 1, 30.0), 0.0)
    a_try(attempts, 0.0)
    attempts.first_byte(0.0)
    error = LinkLost("in the middle")
    attempts.failed(error, 1.0)
    assert given_up(attempts, 1.0) is error
    assert outstanding(router) == 0


def test_nothing_is_tried_without_time(make_router: MakeRouter) -> None:
    router = make_router("alpha", "beta")
    assert isinstance(
        given_up(router.plan(RoutedRequest("digits", 1, 0.0), 5.0), 5.0), DeadlineExceeded
    )
    late = router.plan(RoutedRequest("digits", 1, 1.0), 0.0)
    a_try(late, 0.0)
    late.failed(LinkLost("gone"), 1.0)
    assert isinstance(given_up(late, 1.0), DeadlineExceeded)


def test_an_unknown_model_is_given_up_at_once(make_router: MakeRouter) -> None:
    attempts = make_router().plan(RoutedRequest("digits", None, 30.0), 0.0)
    assert isinstance(given_up(attempts, 0.0), ModelNotFound)
    assert repr(attempts) == "<Attempts digits: over, tried []>"


def test_with_nobody_left_the_error_says_why_for_each(
    make_router: MakeRouter, make_replica: Callable[..., Replica]
) -> None:
    router = make_router("alpha", "beta")
    router.link_changed(NodeId("beta"), LinkState.STALLED, 0.0)
    router.replica_changed(make_replica("gamma", state="loading"), 0.0)
    attempts = router.plan(RoutedRequest("digits", 1, 30.0), 0.0)
    a_try(attempts, 0.0)
    attempts.failed(LinkLost("gone"), 0.0)
    error = given_up(attempts, 0.0)
    assert isinstance(error, NoReplica)
    assert str(error) == (
        "no replica of model 'digits' can take the request: gamma: loading; alpha: link_lost; "
        "beta: link stalled"
    )


def test_with_nobody_left_but_the_busy_the_answer_is_saturated(make_router: MakeRouter) -> None:
    router = make_router("alpha", "beta")
    attempts = router.plan(RoutedRequest("digits", 1, 30.0), 0.0)
    for error in (Saturated("full"), LinkLost("gone")):
        a_try(attempts, 0.0)
        attempts.failed(error, 0.0)
    assert isinstance(given_up(attempts, 0.0), Saturated)


def test_a_replica_that_became_ready_meanwhile_is_used(
    make_router: MakeRouter, make_replica: Callable[..., Replica]
) -> None:
    router = make_router("alpha")
    attempts = router.plan(RoutedRequest("digits", None, 30.0), 0.0)
    a_try(attempts, 0.0)
    router.replica_changed(make_replica("beta"), 0.5)
    router.link_changed(NodeId("beta"), LinkState.UP, 0.0)
    attempts.failed(LinkLost("gone"), 0.5)
    assert a_try(attempts, 0.5).route.replica.node == "beta"


def test_not_serving_takes_the_replica_out_until_it_announces_itself_anew(
    make_router: MakeRouter, make_replica: Callable[..., Replica]
) -> None:
    router = make_router("alpha")
    attempts = router.plan(RoutedRequest("digits", None, 30.0), 0.0)
    a_try(attempts, 0.0)
    attempts.failed(NotServing("unloaded"), 0.0)
    assert isinstance(
        given_up(router.plan(RoutedRequest("digits", None, 30.0), 0.1), 0.1), NoReplica
    )
    router.replica_changed(make_replica("alpha"), 0.2)  # the same word again
    assert isinstance(
        given_up(router.plan(RoutedRequest("digits", None, 30.0), 0.2), 0.2), NoReplica
    )
    router.replica_changed(make_replica("alpha", slots=2), 0.3)
    a_try(router.plan(RoutedRequest("digits", None, 30.0), 0.3), 0.3)


def test_a_late_try_goes_on_and_another_is_sent_beside_it(make_router: MakeRouter) -> None:
    router = make_router("alpha", "beta")
    attempts = router.plan(RoutedRequest("digits", 1, 30.0), 0.0)
    first = a_try(attempts, 0.0)
    assert attempts.beside_at == 2.0
    second = attempts.beside(2.0)
    assert second is not None
    assert second.route.replica.node != first.route.replica.node
    assert (second.route.reason, second.remaining_s) == ("hedge", 28.0)
    assert (attempts.flying, attempts.beside_at) == (2, math.inf)
    assert outstanding(router) == 2
    attempts.succeeded(3.0, None, first)
    assert attempts.tried == ()
    assert f"node={first.route.replica.node_name};" in attempts.header
    assert outstanding(router) == 0
    assert states(router) == {BreakerState.CLOSED}


def test_a_late_try_that_loses_counts_as_failed(make_router: MakeRouter) -> None:
    router = make_router("alpha", "beta")
    first_of = router.candidates("digits", 1).ready
    for each in first_of:
        each.breaker.record(each.breaker.take(0.0), Verdict.FAILURE, 0.0, "peer")
        each.breaker.record(each.breaker.take(0.0), Verdict.FAILURE, 0.0, "peer")
    attempts = router.plan(RoutedRequest("digits", 1, 30.0), 0.0)
    first = a_try(attempts, 0.0)
    second = attempts.beside(2.0)
    attempts.succeeded(2.5, None, second)
    breaker = first.route.candidate.breaker
    assert (breaker.state, breaker.cause) == (BreakerState.OPEN, "late")


def test_where_nobody_else_can_be_asked_a_slow_run_has_all_the_time_of_its_client(
    make_router: MakeRouter,
) -> None:
    router = make_router("alpha")
    attempts = router.plan(RoutedRequest("digits", 1, 30.0), 0.0)
    step = a_try(attempts, 0.0)
    assert (step.remaining_s, attempts.beside_at) == (30.0, math.inf)
    attempts.timed_out(30.0)
    error = given_up(attempts, 30.0)
    assert isinstance(error, DeadlineExceeded)
    assert str(error) == "no answer within 30.0 s"


def test_a_slow_model_is_late_after_eight_times_its_expected_time(make_router: MakeRouter) -> None:
    router = make_router("alpha", "beta")
    for node in ("alpha", "beta"):
        router.load_reported(NodeId(node), "digits", 1, LoadReport(0, 1, 999.0), 0.0)
    attempts = router.plan(RoutedRequest("digits", 1, 30.0), 0.0)
    a_try(attempts, 0.0)
    assert attempts.beside_at == pytest.approx(8.0)


def test_a_model_whose_runs_differ_widely_is_late_after_twice_what_most_of_them_take(
    make_router: MakeRouter,
) -> None:
    router = make_router("alpha", "beta")
    times = router.answer_times("digits", 1)
    for number in range(200):
        times.add(100.0 if number % 20 == 0 else 1.0)
    while router.hedges.take(0.0):
        pass
    attempts = router.plan(RoutedRequest("digits", 1, 30.0), 0.0)
    step = a_try(attempts, 0.0)
    assert attempts.beside(attempts.beside_at) is None  # no hedge is left
    expected_s = step.route.expected_ms / 1000
    assert attempts.beside_at == pytest.approx(2 * times.slowest * expected_s)
    assert 200 * expected_s <= attempts.beside_at <= 260 * expected_s


def test_there_are_three_tries_at_most_side_by_side_or_not(make_router: MakeRouter) -> None:
    attempts = make_router("alpha", "beta", "gamma", "delta").plan(
        RoutedRequest("digits", 1, 30.0), 0.0
    )
    a_try(attempts, 0.0)
    for number in (1, 2):
        assert attempts.beside(attempts.beside_at) is not None
        assert attempts.flying == number + 1
    assert attempts.beside_at == math.inf


def test_when_one_of_two_tries_fails_the_other_is_waited_for(make_router: MakeRouter) -> None:
    router = make_router("alpha", "beta", "gamma")
    attempts = router.plan(RoutedRequest("digits", 1, 30.0), 0.0)
    first = a_try(attempts, 0.0)
    second = attempts.beside(2.0)
    assert second is not None
    attempts.failed(LinkLost("gone"), 2.1, None, second)
    assert attempts.next(2.1) == Await()
    attempts.failed(LinkLost("gone"), 2.2, None, first)
    third = a_try(attempts, 2.2)
    assert third.route.replica.node not in {first.route.replica.node, second.route.replica.node}


def test_nothing_is_sent_beside_a_try_that_has_failed_meanwhile(make_router: MakeRouter) -> None:
    """Its timer may run out between the failure and the next look."""
    attempts = make_router("alpha", "beta").plan(RoutedRequest("digits", 1, 30.0), 0.0)
    a_try(attempts, 0.0)
    attempts.failed(LinkLost("gone"), 1.0)
    assert attempts.beside_at < math.inf
    assert attempts.beside(attempts.beside_at) is None


def test_an_error_that_says_all_ends_the_request_although_another_try_is_out(
    make_router: MakeRouter,
) -> None:
    router = make_router("alpha", "beta")
    attempts = router.plan(RoutedRequest("digits", 1, 30.0), 0.0)
    a_try(attempts, 0.0)
    second = attempts.beside(2.0)
    error = InvalidRequest("shape")
    attempts.failed(error, 2.1, None, second)
    assert given_up(attempts, 2.1) is error
    attempts.close(2.1)
    assert outstanding(router) == 0


def test_a_request_at_which_a_model_raised_is_tried_elsewhere(make_router: MakeRouter) -> None:
    """Two of three have lost their driver: the third answers, and the others are counted."""
    router = make_router("alpha", "beta", "gamma")
    attempts = router.plan(RoutedRequest("digits", 1, 30.0), 0.0)
    raised = []
    for _ in range(2):
        raised.append(a_try(attempts, 0.0).route.candidate)
        attempts.failed(InferenceFailed("the driver is gone"), 0.0)
    third = a_try(attempts, 0.0)
    assert third.route.candidate not in raised
    attempts.succeeded(0.1)
    assert all(each.load.error_rate(0.1) > 0 for each in raised)
    for each in raised:
        for _ in range(2):
            permit = each.breaker.take(0.2)
            each.breaker.record(permit, Verdict.FAILURE, 0.2, InferenceFailed.code)
    assert [each.breaker.state for each in raised] == [BreakerState.OPEN] * 2


def test_a_request_that_raises_everywhere_is_itself_to_blame(make_router: MakeRouter) -> None:
    router = make_router("alpha", "beta", "gamma")
    for _ in range(20):
        attempts = router.plan(RoutedRequest("digits", 1, 30.0), 0.0)
        error = InferenceFailed("cannot reshape")
        for _ in range(3):
            a_try(attempts, 0.0)
            attempts.failed(error, 0.0)
        assert given_up(attempts, 0.0) is error
    for each in router.candidates("digits", 1).ready:
        assert each.breaker.allows(0.0)


def test_with_nobody_else_to_ask_the_models_own_words_are_the_answer(
    make_router: MakeRouter,
) -> None:
    attempts = make_router("alpha").plan(RoutedRequest("digits", 1, 30.0), 0.0)
    a_try(attempts, 0.0)
    error = InferenceFailed("cannot reshape")
    attempts.failed(error, 0.0)
    assert given_up(attempts, 0.0) is error


def test_after_two_busy_replicas_the_third_is_asked_after_a_pause(make_router: MakeRouter) -> None:
    router = make_router("alpha", "beta", "gamma")
    attempts = router.plan(RoutedRequest("digits", 1, 30.0), 0.0)
    for _ in range(2):
        a_try(attempts, 0.0)
        attempts.failed(Saturated("full"), 0.0)
    step = attempts.next(0.0)
    assert isinstance(step, Wait)
    assert 0.01 <= step.pause_s <= 0.03
    assert router.budget.granted == 2  # the one that waits is counted already
    a_try(attempts, step.pause_s)
    assert router.budget.granted == 2


def test_when_all_are_busy_the_shortest_of_their_pauses_is_told(make_router: MakeRouter) -> None:
    attempts = make_router("alpha", "beta").plan(RoutedRequest("digits", 1, 30.0), 0.0)
    for pause_s in (7.0, 3.0):
        a_try(attempts, 0.0)
        attempts.failed(Saturated("full", pause_s), 0.0)
    error = given_up(attempts, 0.0)
    assert isinstance(error, Saturated)
    assert error.retry_after_s == 3.0


def test_impatient_callers_never_open_a_breaker(make_router: MakeRouter) -> None:
    router = make_router("alpha")
    for number in range(20):
        attempts = router.plan(RoutedRequest("digits", 1, 0.01), number)
        a_try(attempts, number)
        if number % 2:
            attempts.timed_out(number + 0.01)
        else:
            attempts.failed(DeadlineExceeded("told by the node"), number + 0.01)
        assert isinstance(given_up(attempts, number + 0.01), DeadlineExceeded)
    assert states(router) == {BreakerState.CLOSED}
    assert router.candidates("digits", 1).ready[0].load.error_rate(20.0) == 0.0


@pytest.mark.parametrize("told_by_the_node", [True, False])
def test_three_requests_that_waited_long_enough_open_it(
    told_by_the_node: bool, make_router: MakeRouter
) -> None:
    router = make_router("alpha")
    for now in (0.0, 3.0, 6.0):
        attempts = router.plan(RoutedRequest("digits", 1, 2.5), now)
        a_try(attempts, now)
        if told_by_the_node:
            attempts.failed(DeadlineExceeded("too slow"), now + 2.5)
        else:
            attempts.timed_out(now + 2.5)
    assert states(router) == {BreakerState.OPEN}


def test_the_budget_ends_retries_with_the_error_itself(make_router: MakeRouter) -> None:
    router = make_router("alpha", "beta")
    while router.budget.take(0.0):
        pass
    attempts = router.plan(RoutedRequest("digits", 1, 30.0), 0.0)
    a_try(attempts, 0.0)
    error = Saturated("full")
    attempts.failed(error, 0.0)
    assert given_up(attempts, 0.0) is error


def test_a_link_that_dies_under_many_requests_is_one_failure(make_router: MakeRouter) -> None:
    router = make_router("alpha")
    plans = [router.plan(RoutedRequest("digits", 1, 30.0), 0.0) for _ in range(20)]
    for attempts in plans:
        a_try(attempts, 0.0)
    for attempts in plans:
        attempts.failed(LinkLost("gone"), 0.0)
    alpha = router.candidates("digits", 1).ready[0]
    assert alpha.load.error_rate(0.0) == pytest.approx(0.2)
    assert alpha.breaker.epoch == 1


def test_calls_out_of_order_are_refused(make_router: MakeRouter) -> None:
    attempts = make_router("alpha").plan(RoutedRequest("digits", 1, 30.0), 0.0)
    assert repr(attempts) == "<Attempts digits: idle, tried []>"
    too_early: list[Callable[[], None]] = [
        lambda: attempts.succeeded(0.0),
        lambda: attempts.failed(LinkLost("x"), 0.0),
        lambda: attempts.timed_out(0.0),
    ]
    for early in too_early:
        with pytest.raises(RuntimeError, match="no try"):
            early()
    step = a_try(attempts, 0.0)
    assert repr(attempts) == "<Attempts digits: flying, tried []>"
    assert attempts.next(0.0) == Await()
    attempts.succeeded(0.0, None, step)
    with pytest.raises(RuntimeError, match="no try"):
        attempts.succeeded(0.0, None, step)


def test_a_caller_that_hangs_up_leaves_nothing_behind(make_router: MakeRouter) -> None:
    router = make_router("alpha")
    attempts = router.plan(RoutedRequest("digits", 1, 30.0), 0.0)
    a_try(attempts, 0.0)
    attempts.close(5.0)
    attempts.close(6.0)
    assert outstanding(router) == 0
    assert states(router) == {BreakerState.CLOSED}
    assert isinstance(attempts.next(6.0), GiveUp)


def cut_off(make_router: MakeRouter) -> tuple[Router, Attempts]:
    """A request is at alpha, whose link goes through a relay, and the relay dies."""
    router = make_router("alpha")
    router.link_changed(NodeId("alpha"), LinkState.UP, 0.0, is_relayed=True)
    attempts = router.plan(RoutedRequest("digits", 1, 30.0), 0.0)
    a_try(attempts, 0.0)
    router.link_changed(NodeId("alpha"), LinkState.DOWN, 1.0)
    attempts.failed(LinkLost("the relay is gone"), 1.0)
    return router, attempts


def test_a_request_whose_relay_died_waits_for_the_new_link_to_the_same_node(
    make_router: MakeRouter,
) -> None:
    router, attempts = cut_off(make_router)
    for now in (1.0, 1.05, 3.9):
        assert isinstance(attempts.next(now), Wait)
    router.link_changed(NodeId("alpha"), LinkState.UP, 3.9, is_relayed=True)
    assert a_try(attempts, 3.9).route.replica.node == "alpha"
    attempts.succeeded(4.0)
    assert outstanding(router) == 0
    assert 'tried="alpha:link_lost"' in attempts.header


def test_it_waits_no_longer_than_another_relay_may_take(make_router: MakeRouter) -> None:
    router, attempts = cut_off(make_router)
    assert isinstance(attempts.next(1.0), Wait)
    error = given_up(attempts, 1.0 + NEW_RELAY_S)
    assert isinstance(error, NoReplica)
    assert "alpha: link_lost" in str(error)
    assert outstanding(router) == 0


def test_it_does_not_wait_for_a_node_that_is_dead_or_where_another_serves(
    make_router: MakeRouter, make_replica: Callable[..., Replica]
) -> None:
    router, attempts = cut_off(make_router)
    router.node_changed(NodeId("alpha"), NodeState.DEAD)
    assert isinstance(given_up(attempts, 1.0), NoReplica)
    router, attempts = cut_off(make_router)
    router.replica_changed(make_replica("beta"), 1.0)
    router.link_changed(NodeId("beta"), LinkState.UP, 1.0)
    assert a_try(attempts, 1.0).route.replica.node == "beta"


def test_links_through_relays_that_break_again_and_again_are_tried_three_times(
    make_router: MakeRouter,
) -> None:
    router, attempts = cut_off(make_router)
    for now in (1.5, 2.0):
        router.link_changed(NodeId("alpha"), LinkState.UP, now, is_relayed=True)
        a_try(attempts, now)
        router.link_changed(NodeId("alpha"), LinkState.DOWN, now)
        attempts.failed(LinkLost("gone again"), now)
    assert isinstance(given_up(attempts, 2.0), LinkLost)
    assert len(attempts.tried) == 3
