from __future__ import annotations

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
from meshnode.routing.attempts import Attempts, GiveUp, Try
from meshnode.routing.breaker import BreakerState
from meshnode.routing.load import LinkState
from meshnode.types import NodeId
from meshnode.wire.messages import LoadReport

if TYPE_CHECKING:
    from collections.abc import Callable

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
    attempts = router.plan("digits", None, timeout_s=30.0, now=100.0)
    assert attempts.header == ""
    step = a_try(attempts, 100.0)
    assert outstanding(router) == 1
    assert step.remaining_s == 30.0
    attempts.first_byte()
    attempts.succeeded(100.01, LoadReport(0, 4, 5.0))
    attempts.close(100.02)
    assert outstanding(router) == 0
    assert step.route.candidate.load.service_ms == 5.0
    assert "attempts=1; reason=" in attempts.header
    assert isinstance(attempts.next(100.03), GiveUp)


def test_a_lost_link_is_retried_on_another_node_and_told(make_router: MakeRouter) -> None:
    router = make_router("alpha", "beta")
    attempts = router.plan("digits", 1, timeout_s=30.0, now=0.0)
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
    attempts = router.plan("digits", 1, timeout_s=30.0, now=0.0)
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
    attempts = router.plan("digits", 1, timeout_s=30.0, now=0.0)
    regions = []
    for _ in range(3):
        regions.append(a_try(attempts, 0.0).route.replica.region)
        attempts.failed(LinkLost("gone"), 0.0)
    assert regions == ["eu", "eu", "us"]


def test_the_second_retry_stays_where_there_is_no_other_region(make_router: MakeRouter) -> None:
    attempts = make_router("alpha", "beta", "gamma").plan("digits", 1, 30.0, 0.0)
    for _ in range(3):
        a_try(attempts, 0.0)
        attempts.failed(LinkLost("gone"), 0.0)
    assert len(attempts.tried) == 3


@pytest.mark.parametrize(
    "error",
    [InvalidRequest("shape"), InferenceFailed("raised"), Cancelled("away"), DeadlineExceeded("t")],
)
def test_what_another_replica_cannot_mend_is_not_retried(
    error: MeshError, make_router: MakeRouter
) -> None:
    router = make_router("alpha", "beta")
    attempts = router.plan("digits", 1, 30.0, 0.0)
    a_try(attempts, 0.0)
    attempts.failed(error, 0.1)
    assert given_up(attempts, 0.1) is error
    assert given_up(attempts, 0.2) is error
    assert states(router) == {BreakerState.CLOSED}


def test_nothing_is_retried_after_the_first_byte(make_router: MakeRouter) -> None:
    router = make_router("alpha", "beta")
    attempts = router.plan("digits", 1, 30.0, 0.0)
    a_try(attempts, 0.0)
    attempts.first_byte()
    error = LinkLost("in the middle")
    attempts.failed(error, 1.0)
    assert given_up(attempts, 1.0) is error
    assert outstanding(router) == 0


def test_nothing_is_tried_without_time(make_router: MakeRouter) -> None:
    router = make_router("alpha", "beta")
    assert isinstance(given_up(router.plan("digits", 1, 0.0, 5.0), 5.0), DeadlineExceeded)
    late = router.plan("digits", 1, 1.0, 0.0)
    a_try(late, 0.0)
    late.failed(LinkLost("gone"), 1.0)
    assert isinstance(given_up(late, 1.0), DeadlineExceeded)


def test_an_unknown_model_is_given_up_at_once(make_router: MakeRouter) -> None:
    attempts = make_router().plan("digits", None, 30.0, 0.0)
    assert isinstance(given_up(attempts, 0.0), ModelNotFound)
    assert repr(attempts) == "<Attempts digits: over, tried []>"


def test_with_nobody_left_the_error_says_why_for_each(
    make_router: MakeRouter, make_replica: Callable[..., Replica]
) -> None:
    router = make_router("alpha", "beta")
    router.link_changed(NodeId("beta"), LinkState.STALLED)
    router.replica_changed(make_replica("gamma", state="loading"), 0.0)
    attempts = router.plan("digits", 1, 30.0, 0.0)
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
    attempts = router.plan("digits", 1, 30.0, 0.0)
    for error in (Saturated("full"), LinkLost("gone")):
        a_try(attempts, 0.0)
        attempts.failed(error, 0.0)
    assert isinstance(given_up(attempts, 0.0), Saturated)


def test_a_replica_that_became_ready_meanwhile_is_used(
    make_router: MakeRouter, make_replica: Callable[..., Replica]
) -> None:
    router = make_router("alpha")
    attempts = router.plan("digits", None, 30.0, 0.0)
    a_try(attempts, 0.0)
    router.replica_changed(make_replica("beta"), 0.5)
    router.link_changed(NodeId("beta"), LinkState.UP)
    attempts.failed(LinkLost("gone"), 0.5)
    assert a_try(attempts, 0.5).route.replica.node == "beta"


def test_not_serving_takes_the_replica_out_until_it_announces_itself_anew(
    make_router: MakeRouter, make_replica: Callable[..., Replica]
) -> None:
    router = make_router("alpha")
    attempts = router.plan("digits", None, 30.0, 0.0)
    a_try(attempts, 0.0)
    attempts.failed(NotServing("unloaded"), 0.0)
    assert isinstance(given_up(router.plan("digits", None, 30.0, 0.1), 0.1), NoReplica)
    router.replica_changed(make_replica("alpha"), 0.2)  # the same word again
    assert isinstance(given_up(router.plan("digits", None, 30.0, 0.2), 0.2), NoReplica)
    router.replica_changed(make_replica("alpha", slots=2), 0.3)
    a_try(router.plan("digits", None, 30.0, 0.3), 0.3)


def test_the_first_byte_is_awaited_shortly_only_while_another_candidate_exists(
    make_router: MakeRouter,
) -> None:
    router = make_router("alpha", "beta")
    attempts = router.plan("digits", 1, 30.0, 0.0)
    assert a_try(attempts, 0.0).first_byte_timeout_s == 2.0
    attempts.timed_out(2.0)
    assert attempts.tried[0][1] == "link_lost"
    assert a_try(attempts, 2.0).first_byte_timeout_s == 28.0
    attempts.timed_out(30.0)
    error = given_up(attempts, 30.0)
    assert isinstance(error, DeadlineExceeded)
    assert str(error) == "no answer within 28.0 s"


def test_a_slow_model_has_eight_times_its_expected_time(make_router: MakeRouter) -> None:
    router = make_router("alpha", "beta")
    for node in ("alpha", "beta"):
        router.load_reported(NodeId(node), "digits", 1, LoadReport(0, 1, 999.0), 0.0)
    step = a_try(router.plan("digits", 1, 30.0, 0.0), 0.0)
    assert step.first_byte_timeout_s == pytest.approx(8.0)


def test_the_last_try_may_take_all_the_time(make_router: MakeRouter) -> None:
    attempts = make_router("alpha", "beta", "gamma", "delta").plan("digits", 1, 30.0, 0.0)
    for _ in range(2):
        assert a_try(attempts, 0.0).first_byte_timeout_s == 2.0
        attempts.failed(LinkLost("gone"), 0.0)
    assert a_try(attempts, 0.0).first_byte_timeout_s == 30.0


def test_impatient_callers_never_open_a_breaker(make_router: MakeRouter) -> None:
    router = make_router("alpha")
    for number in range(20):
        attempts = router.plan("digits", 1, 0.01, number)
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
        attempts = router.plan("digits", 1, 2.5, now)
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
    attempts = router.plan("digits", 1, 30.0, 0.0)
    a_try(attempts, 0.0)
    error = Saturated("full")
    attempts.failed(error, 0.0)
    assert given_up(attempts, 0.0) is error


def test_a_link_that_dies_under_many_requests_is_one_failure(make_router: MakeRouter) -> None:
    router = make_router("alpha")
    plans = [router.plan("digits", 1, 30.0, 0.0) for _ in range(20)]
    for attempts in plans:
        a_try(attempts, 0.0)
    for attempts in plans:
        attempts.failed(LinkLost("gone"), 0.0)
    alpha = router.candidates("digits", 1).ready[0]
    assert alpha.load.error_rate(0.0) == pytest.approx(0.2)
    assert alpha.breaker.epoch == 1


def test_calls_out_of_order_are_refused(make_router: MakeRouter) -> None:
    attempts = make_router("alpha").plan("digits", 1, 30.0, 0.0)
    assert repr(attempts) == "<Attempts digits: idle, tried []>"
    too_early: list[Callable[[], None]] = [
        lambda: attempts.succeeded(0.0),
        lambda: attempts.failed(LinkLost("x"), 0.0),
        lambda: attempts.timed_out(0.0),
    ]
    for early in too_early:
        with pytest.raises(RuntimeError, match="no try"):
            early()
    a_try(attempts, 0.0)
    assert repr(attempts) == "<Attempts digits: flying, tried []>"
    with pytest.raises(RuntimeError, match="no outcome yet"):
        attempts.next(0.0)


def test_a_caller_that_hangs_up_leaves_nothing_behind(make_router: MakeRouter) -> None:
    router = make_router("alpha")
    attempts = router.plan("digits", 1, 30.0, 0.0)
    a_try(attempts, 0.0)
    attempts.close(5.0)
    attempts.close(6.0)
    assert outstanding(router) == 0
    assert states(router) == {BreakerState.CLOSED}
    assert isinstance(attempts.next(6.0), GiveUp)
