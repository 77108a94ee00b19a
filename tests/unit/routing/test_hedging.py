from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import LinkLost
from meshnode.models.execution import Execution
from meshnode.models.manifest import Manifest
from meshnode.routing.breaker import BreakerState
from meshnode.routing.hedging import MIN_ANSWERS, AnswerTimes, is_worth_it, utilisation
from meshnode.routing.load import LinkState
from meshnode.routing.request import RoutedRequest
from meshnode.routing.tries import GiveUp, Try
from meshnode.types import NodeId
from meshnode.wire.messages import LoadReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.routing.attempts import Attempts
    from meshnode.routing.router import Router
    from meshnode.routing.table import Replica

    MakeRouter = Callable[..., Router]


def taught(router: Router, *, requests: int = 200) -> None:
    """Replicas of 100 ms, most answers in time, and enough requests that some may be hedged."""
    for each in router.candidates("digits", 1).ready:
        router.load_reported(each.replica.node, "digits", 1, LoadReport(0, 4, 100.0), 0.0)
    for _ in range(MIN_ANSWERS + 50):
        router.answer_times("digits", 1).add(1.0)
    for _ in range(requests):
        router.hedges.request(0.0)


def begun(router: Router, now: float = 0.0) -> tuple[Attempts, Try]:
    attempts = router.plan(RoutedRequest("digits", 1, 30.0), now)
    step = attempts.next(now)
    assert isinstance(step, Try)
    return attempts, step


def outstanding(router: Router) -> int:
    return sum(each.load.outstanding for each in router.candidates("digits", 1).ready)


def test_a_hedge_goes_out_when_most_answers_would_be_here(make_router: MakeRouter) -> None:
    router = make_router("alpha", "beta")
    taught(router)
    attempts, first = begun(router)
    assert attempts.beside_at == pytest.approx(0.12, abs=0.01)  # 1.19 times 101 ms
    second = attempts.beside(attempts.beside_at)
    assert second is not None
    assert second.route.replica.node != first.route.replica.node
    assert second.route.reason == "hedge"
    assert (router.hedges.granted, router.budget.granted) == (1, 0)


def test_the_first_answer_counts_and_the_loser_is_blamed_for_nothing(
    make_router: MakeRouter,
) -> None:
    router = make_router("alpha", "beta")
    taught(router)
    attempts, first = begun(router)
    second = attempts.beside(attempts.beside_at)
    assert second is not None
    attempts.succeeded(0.2, None, second)
    assert outstanding(router) == 0
    assert f"node={second.route.replica.node_name};" in attempts.header
    assert "attempts=2; reason=hedge" in attempts.header
    assert first.route.candidate.breaker.state is BreakerState.CLOSED
    assert first.route.candidate.load.error_rate(0.2) == 0.0
    assert isinstance(attempts.next(0.2), GiveUp)


def test_when_a_stream_has_begun_the_other_try_has_lost(make_router: MakeRouter) -> None:
    router = make_router("alpha", "beta")
    taught(router)
    attempts, _ = begun(router)
    second = attempts.beside(attempts.beside_at)
    attempts.first_byte(0.2, second)
    assert (attempts.flying, attempts.beside_at) == (1, math.inf)
    attempts.succeeded(1.0)
    assert outstanding(router) == 0


def test_a_request_is_hedged_once_and_what_is_late_then_takes_a_retry(
    make_router: MakeRouter,
) -> None:
    router = make_router("alpha", "beta", "gamma")
    taught(router)
    attempts, _ = begun(router)
    assert attempts.beside(attempts.beside_at) is not None
    assert attempts.beside_at > 1.0
    assert attempts.beside(attempts.beside_at) is not None
    assert (router.hedges.granted, router.budget.granted) == (1, 1)


def test_without_budget_a_slow_try_is_left_alone_until_it_is_late(make_router: MakeRouter) -> None:
    router = make_router("alpha", "beta")
    taught(router, requests=0)
    attempts, _ = begun(router)
    assert attempts.beside(attempts.beside_at) is None
    assert attempts.beside_at >= 2.0
    assert router.hedges.refused == 1


def test_above_seventy_percent_of_use_nothing_is_hedged(make_router: MakeRouter) -> None:
    router = make_router("alpha", "beta")
    taught(router)
    for each in router.candidates("digits", 1).ready:
        each.load.report(LoadReport(3, 4, 100.0), 0.0, 0.0)
    attempts, _ = begun(router)
    assert utilisation(router.candidates("digits", 1).ready) > 0.7
    assert attempts.beside(attempts.beside_at) is None
    assert router.hedges.granted == 0


def test_a_slow_node_is_no_hedge_for_a_fast_one(make_router: MakeRouter) -> None:
    router = make_router("alpha", "beta")
    taught(router)
    router.load_reported(NodeId("beta"), "digits", 1, LoadReport(0, 4, 5000.0), 0.1)
    attempts, first = begun(router, 0.2)
    assert first.route.replica.node == "alpha"
    assert attempts.beside(attempts.beside_at) is None
    assert router.hedges.granted == 0


def test_before_enough_answers_came_nothing_is_hedged(make_router: MakeRouter) -> None:
    attempts, _ = begun(make_router("alpha", "beta"))
    assert attempts.beside_at == 2.0


def test_what_must_not_run_twice_is_never_hedged(
    make_router: MakeRouter, make_replica: Callable[..., Replica]
) -> None:
    router = make_router()
    once = Manifest(
        "digits", 1, "onnx", "", (), (), 0, (), "model.onnx", Execution(repeatable=False)
    )
    for name in ("alpha", "beta"):
        router.replica_changed(make_replica(name, manifest=once), 0.0)
        router.link_changed(NodeId(name), LinkState.UP, 0.0)
    taught(router)
    attempts, _ = begun(router)
    assert attempts.beside_at == math.inf
    assert attempts.beside(1.0) is None


def test_a_hedge_whose_link_is_lost_leaves_the_first_as_it_was(make_router: MakeRouter) -> None:
    router = make_router("alpha", "beta")
    taught(router)
    attempts, first = begun(router)
    second = attempts.beside(attempts.beside_at)
    attempts.failed(LinkLost("gone"), 0.2, None, second)
    attempts.succeeded(0.3, None, first)
    assert f"node={first.route.replica.node_name};" in attempts.header
    assert outstanding(router) == 0


def test_no_budget_lasts_longer_than_its_share(make_router: MakeRouter) -> None:
    """All answers are slow: one in twenty requests is hedged."""
    router = make_router("alpha", "beta", "gamma")
    taught(router, requests=0)
    now = 0.0
    for _ in range(400):
        now += 0.01
        attempts, _ = begun(router, now)
        attempts.beside(attempts.beside_at)
        attempts.close(now)
    assert 15 <= router.hedges.granted <= 20


def test_another_is_worth_no_more_than_was_waited_already() -> None:
    assert is_worth_it(0.1, 100.0)
    assert not is_worth_it(0.1, 101.0)


def test_without_candidates_there_is_no_room() -> None:
    assert utilisation(()) == 1.0


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.floats(0.1, 20.0))
def test_nineteen_of_twenty_answers_are_below_the_learned_ratio(seed: int, scale: float) -> None:
    rng = random.Random(seed)
    times = AnswerTimes(0.95)
    for _ in range(3000):
        times.add(scale * rng.lognormvariate(0, 0.5))
    below = sum(scale * rng.lognormvariate(0, 0.5) <= times.slow for _ in range(2000)) / 2000
    assert 0.9 <= below <= 0.995
    assert times.slow <= times.slowest


def test_the_ratio_follows_what_came_lately() -> None:
    times = AnswerTimes(0.95)
    assert times.slow == math.inf
    for _ in range(2000):
        times.add(1.0)
    assert times.slow == pytest.approx(1.19, abs=0.01)
    for _ in range(3000):
        times.add(8.0)
    assert times.slow == pytest.approx(9.5, abs=0.1)
    times.add(0.0)
    times.add(1e9)
    assert repr(times).startswith("<AnswerTimes of ")
