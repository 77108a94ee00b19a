"""Requests that must not run twice are tried elsewhere only while it is certain that they have not begun."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import (
    DeadlineExceeded,
    InferenceFailed,
    LinkLost,
    MeshError,
    NotServing,
    OutcomeUnknown,
    PeerError,
    Saturated,
)
from meshnode.models.execution import DEFAULT_EXECUTION, Execution, SequenceBatching
from meshnode.models.manifest import Manifest
from meshnode.routing.breaker import BreakerState
from meshnode.routing.load import LinkState
from meshnode.routing.request import RoutedRequest
from meshnode.routing.router import Router
from meshnode.routing.table import Replica
from meshnode.routing.tries import GiveUp, Try
from meshnode.types import NodeId, ReplicaState

if TYPE_CHECKING:
    from meshnode.routing.attempts import Attempts

ONCE = Execution(repeatable=False)
SEQUENCES = Execution(sequences=SequenceBatching())


def router_of(execution: Execution, *nodes: str, version: int = 1) -> Router:
    router = Router(NodeId("me"), "eu", random.Random(1))
    add(router, execution, *nodes, version=version)
    return router


def add(router: Router, execution: Execution, *nodes: str, version: int) -> None:
    manifest = Manifest("pay", version, "onnx", "", (), (), 0, (), "model.onnx", execution)
    for name in nodes:
        node = NodeId(name)
        ready = ReplicaState.READY
        replica = Replica(node, name, "eu", "", "pay", version, ready, manifest=manifest)
        router.replica_changed(replica, 0.0)
        router.link_changed(node, LinkState.UP, 0.0)
        router.rtt_measured(node, 0.001)


def a_try(attempts: Attempts, now: float = 0.0) -> Try:
    step = attempts.next(now)
    assert isinstance(step, Try), step
    return step


def given_up(attempts: Attempts, now: float = 0.0) -> MeshError:
    step = attempts.next(now)
    assert isinstance(step, GiveUp), step
    return step.error


def never_sent() -> LinkLost:
    error = LinkLost("there is no usable link to the node")
    error.nothing_ran = True
    return error


@pytest.mark.parametrize("execution", [ONCE, SEQUENCES])
def test_a_request_that_may_have_run_ends_with_the_reason(execution: Execution) -> None:
    attempts = router_of(execution, "alpha", "beta").plan(RoutedRequest("pay", None, 30.0), 0.0)
    name = a_try(attempts).route.replica.node_name
    attempts.failed(LinkLost("the connection broke"), 1.0)
    error = given_up(attempts, 1.0)
    assert isinstance(error, OutcomeUnknown)
    assert str(error) == (
        f"no answer came from {name} (the connection broke). The request may have run, and it was not tried "
        "elsewhere, because requests of model 'pay' must not run twice"
    )
    assert attempts.tried == ((name, "link_lost"),)


@pytest.mark.parametrize("error", [Saturated("full"), NotServing("unloaded"), never_sent()])
def test_what_says_that_nothing_ran_is_retried(error: MeshError) -> None:
    attempts = router_of(ONCE, "alpha", "beta").plan(RoutedRequest("pay", None, 30.0), 0.0)
    first = a_try(attempts)
    attempts.failed(error, 0.0)
    assert a_try(attempts).route.replica.node != first.route.replica.node


def test_a_link_that_was_never_written_to_and_one_that_broke_differ_at_each_try() -> None:
    attempts = router_of(ONCE, "alpha", "beta", "gamma").plan(RoutedRequest("pay", None, 30.0), 0.0)
    for error in (never_sent(), LinkLost("gone")):
        a_try(attempts)
        attempts.failed(error, 0.0)
    assert isinstance(given_up(attempts), OutcomeUnknown)
    assert [code for _, code in attempts.tried] == ["link_lost", "link_lost"]


@pytest.mark.parametrize("error", [InferenceFailed("it raised"), DeadlineExceeded("in the queue")])
def test_what_is_never_retried_keeps_its_own_words(error: MeshError) -> None:
    attempts = router_of(ONCE, "alpha", "beta").plan(RoutedRequest("pay", None, 30.0), 0.0)
    a_try(attempts)
    attempts.failed(error, 0.0)
    assert given_up(attempts) is error


def test_it_has_all_its_time_for_the_first_byte_although_others_could_be_asked() -> None:
    router = router_of(ONCE, "alpha", "beta")
    attempts = router.plan(RoutedRequest("pay", None, 30.0), 0.0)
    assert a_try(attempts).remaining_s == 30.0
    assert attempts.beside_at == math.inf
    attempts.timed_out(30.0)
    error = given_up(attempts, 30.0)
    assert isinstance(error, DeadlineExceeded)
    assert str(error) == "no answer within 30.0 s; the request may have run"
    for name in ("alpha", "beta"):
        breaker = router.breakers.of(NodeId(name), "pay", 1)
        assert breaker.state is BreakerState.CLOSED


def test_the_version_that_a_try_goes_to_decides() -> None:
    router = router_of(DEFAULT_EXECUTION, "alpha", version=2)
    add(router, ONCE, "beta", "gamma", version=1)
    attempts = router.plan(RoutedRequest("pay", None, 30.0), 0.0)
    assert a_try(attempts).route.replica.version == 2
    attempts.failed(LinkLost("gone"), 0.0)
    router.replica_removed(NodeId("alpha"), "pay", 2)
    assert a_try(attempts).remaining_s == 30.0
    attempts.failed(LinkLost("gone"), 0.0)
    assert isinstance(given_up(attempts), OutcomeUnknown)


def test_an_error_that_a_peer_names_says_whether_anything_ran() -> None:
    assert (Saturated("x").nothing_ran, NotServing("x").nothing_ran) == (True, True)
    assert not any(each("x").nothing_ran for each in (LinkLost, PeerError, DeadlineExceeded))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_no_request_runs_twice_whatever_the_replicas_say(seed: int) -> None:
    """A replica runs a request and its answer is lost, or refuses it before; the order is chance."""
    rng = random.Random(seed)
    router = router_of(ONCE, "alpha", "beta", "gamma", "delta")
    now = 0.0
    for _ in range(20):
        attempts = router.plan(RoutedRequest("pay", None, 5.0), now)
        begun = 0
        while isinstance(attempts.next(now), Try):
            now += rng.choice([0.0, 0.5, 6.0])
            how = rng.choice(["lost", "late", "told late", "broken", "full", "gone", "never", "ok"])
            begun += how in ("lost", "late", "told late", "broken", "ok")
            if how == "ok":
                attempts.succeeded(now)
            elif how == "late":
                attempts.timed_out(now)
            else:
                attempts.failed(
                    {
                        "lost": LinkLost("gone"),
                        "told late": DeadlineExceeded("at the replica"),
                        "broken": InferenceFailed("it raised"),
                        "full": Saturated("full"),
                        "gone": NotServing("unloaded"),
                        "never": never_sent(),
                    }[how],
                    now,
                )
        attempts.close(now)
        assert begun <= 1
