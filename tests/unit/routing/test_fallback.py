"""Requests that a release sends to a new version: they fall back on the old one, and both are counted."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from msgspec import structs

from meshnode.errors import (
    Cancelled,
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
    LinkLost,
    MeshError,
    NotServing,
    Saturated,
)
from meshnode.models.execution import Execution
from meshnode.rollout import Progress
from meshnode.routing.releasing.evidence import Cell, merged
from meshnode.routing.request import RoutedRequest
from meshnode.routing.tries import Await, GiveUp, Try
from meshnode.state.release import Release, Step
from meshnode.types import ReplicaState

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.models.manifest import Manifest
    from meshnode.routing.attempts import Attempts
    from meshnode.routing.router import Router
    from meshnode.routing.table import Replica

    MakeRouter = Callable[..., Router]
    MakeReplica = Callable[..., Replica]

PLAN = Release("canary", 1, 2, (Step(0.5),), begun_ms=1)
REVISION = (1, 7)
RUNNING = Progress(REVISION, "running", 0, 0)
CANARY = RoutedRequest("digits", 2, 30.0, fallback=1, is_arm=True)
ANY = RoutedRequest("digits", None, 30.0)


@pytest.fixture
def router(make_router: MakeRouter, make_replica: MakeReplica) -> Router:
    """Return a router that knows two replicas of each version on the same nodes, one step into a release."""
    router = make_router("alpha", "beta")
    for node in ("alpha", "beta"):
        router.replica_changed(make_replica(node, version=2), 0.0)
    router.release_changed("digits", REVISION, PLAN, RUNNING)
    return router


def a_try(attempts: Attempts, now: float = 0.0) -> Try:
    step = attempts.next(now)
    assert isinstance(step, Try), step
    return step


def version(step: Try) -> int:
    return step.route.replica.version


def drained(router: Router) -> None:
    """Leave no retries in the budget."""
    while router.budget.take(0.0):
        pass


def seen(router: Router) -> dict[int, Cell]:
    live = router.releases.of("digits")
    assert live is not None
    evidence = live.book.snapshot()
    assert evidence is not None
    return {version: cell for (version, _), cell in merged([evidence], REVISION, 0).items()}


# Falling back


@pytest.mark.parametrize(
    "error",
    [
        InferenceFailed("no"),
        InvalidRequest("no"),
        LinkLost("gone"),
        NotServing("no"),
        Saturated("busy"),
        DeadlineExceeded("late"),
        MeshError("what?"),
    ],
)
def test_whatever_fails_a_try_of_the_new_version_the_old_one_is_next_at_no_cost(
    router: Router, error: MeshError
) -> None:
    drained(router)
    attempts = router.plan(CANARY, 0.0)
    assert version(a_try(attempts)) == 2
    attempts.failed(error, 0.1)
    assert version(a_try(attempts, 0.1)) == 1
    attempts.succeeded(0.2)


def test_the_old_version_may_answer_on_the_node_where_the_new_one_failed(
    make_router: MakeRouter, make_replica: MakeReplica
) -> None:
    router = make_router("alpha")
    router.replica_changed(make_replica("alpha", version=2), 0.0)
    attempts = router.plan(CANARY, 0.0)
    a_try(attempts)
    attempts.failed(InferenceFailed("no"), 0.1)
    assert version(a_try(attempts, 0.1)) == 1


def test_a_failure_of_the_new_version_leaves_all_retries_to_the_old_one(router: Router) -> None:
    attempts = router.plan(CANARY, 0.0)
    a_try(attempts)
    attempts.failed(NotServing("no"), 0.0)
    for _ in range(2):
        assert version(a_try(attempts)) == 1
        attempts.failed(NotServing("no"), 0.0)
    assert isinstance(attempts.next(0.0), GiveUp)
    assert len(attempts.tried) == 3


def test_the_old_version_keeps_to_the_retry_budget(router: Router) -> None:
    drained(router)
    attempts = router.plan(CANARY, 0.0)
    a_try(attempts)
    attempts.failed(NotServing("no"), 0.0)
    a_try(attempts)
    attempts.failed(NotServing("no"), 0.0)
    assert isinstance(attempts.next(0.0), GiveUp)


def test_a_request_that_was_cancelled_falls_back_on_nothing(router: Router) -> None:
    attempts = router.plan(CANARY, 0.0)
    a_try(attempts)
    attempts.failed(Cancelled("the client hung up"), 0.1)
    assert isinstance(attempts.next(0.1), GiveUp)


def test_where_no_replica_of_the_new_version_is_ready_the_old_one_is_asked_at_once(
    router: Router, make_replica: MakeReplica
) -> None:
    for node in ("alpha", "beta"):
        router.replica_changed(make_replica(node, version=2, state=ReplicaState.FAILED), 0.0)
    drained(router)
    assert version(a_try(router.plan(CANARY, 0.0))) == 1


def test_where_the_old_version_is_not_served_the_new_one_is_tried_as_usual(
    router: Router, make_replica: MakeReplica
) -> None:
    for node in ("alpha", "beta"):
        router.replica_changed(make_replica(node, state=ReplicaState.FAILED), 0.0)
    attempts = router.plan(CANARY, 0.0)
    first = a_try(attempts)
    attempts.failed(NotServing("no"), 0.0)
    second = a_try(attempts)
    assert version(second) == 2
    assert second.route.replica.node != first.route.replica.node


@pytest.mark.parametrize(
    ("error", "is_next"), [(LinkLost("gone"), False), (NotServing("no"), True)]
)
def test_what_must_not_run_twice_falls_back_only_where_nothing_ran(
    router: Router, make_replica: MakeReplica, manifest: Manifest, error: MeshError, is_next: bool
) -> None:
    once = Execution(repeatable=False)
    for number in (1, 2):
        what = structs.replace(manifest, version=number, execution=once)
        for node in ("alpha", "beta"):
            router.replica_changed(make_replica(node, version=number, manifest=what), 0.0)
    attempts = router.plan(CANARY, 0.0)
    a_try(attempts)
    attempts.failed(error, 0.1)
    assert isinstance(attempts.next(0.1), Try) is is_next


def test_nothing_falls_back_once_an_answer_has_begun(router: Router) -> None:
    attempts = router.plan(CANARY, 0.0)
    step = a_try(attempts)
    attempts.first_byte(0.1, step)
    attempts.failed(InferenceFailed("no"), 0.2)
    assert isinstance(attempts.next(0.2), GiveUp)


# Beside a slow try


def test_the_old_version_is_asked_beside_a_try_that_has_had_half_of_the_time(
    router: Router,
) -> None:
    drained(router)
    attempts = router.plan(CANARY._replace(timeout_s=1.0), 0.0)
    a_try(attempts)
    beside = None
    while beside is None:
        assert attempts.beside_at <= 0.5
        beside = attempts.beside(attempts.beside_at)
    assert version(beside) == 1
    attempts.succeeded(0.6, None, beside)
    assert isinstance(attempts.next(0.6), GiveUp)


def test_an_error_of_the_new_version_is_not_final_while_the_old_one_is_out(router: Router) -> None:
    attempts = router.plan(CANARY._replace(timeout_s=1.0), 0.0)
    first = a_try(attempts)
    beside = None
    while beside is None or version(beside) == 2:
        assert attempts.beside_at < math.inf
        beside = attempts.beside(attempts.beside_at)
    attempts.failed(InvalidRequest("no"), 0.6, None, first)
    assert isinstance(attempts.next(0.6), Await)
    attempts.succeeded(0.7, None, beside)


def test_a_request_without_a_fallback_has_no_other_tries_than_before(router: Router) -> None:
    attempts = router.plan(ANY, 0.0)
    a_try(attempts)
    attempts.failed(InvalidRequest("no"), 0.1)
    assert isinstance(attempts.next(0.1), GiveUp)


# What is counted


def test_answers_of_both_versions_are_counted_with_their_run_times(router: Router) -> None:
    for request, run_ms in ((CANARY, 8.0), (ANY, 4.0), (ANY, 4.0)):
        attempts = router.plan(request, 0.0)
        a_try(attempts)
        attempts.succeeded(0.1, run_ms=run_ms)
        attempts.close(0.1)
    cells = seen(router)
    assert (cells[1].requests, cells[2].requests) == (2, 1)
    assert min(cells[2].run_times) - min(cells[1].run_times) == 16  # one octave


def test_a_request_whose_caller_named_the_version_says_nothing(router: Router) -> None:
    attempts = router.plan(RoutedRequest("digits", 2, 30.0), 0.0)
    a_try(attempts)
    attempts.succeeded(0.1)
    assert seen(router) == {}


def test_a_kept_answer_says_nothing_of_run_times(router: Router) -> None:
    attempts = router.plan(CANARY, 0.0)
    a_try(attempts)
    attempts.succeeded(0.1, kept=True)
    assert seen(router) == {}


@pytest.mark.parametrize("error", [InferenceFailed("no"), InvalidRequest("no")])
def test_an_error_that_only_the_new_version_has_is_its_own(
    router: Router, error: MeshError
) -> None:
    attempts = router.plan(CANARY, 0.0)
    a_try(attempts)
    attempts.failed(error, 0.1)
    a_try(attempts, 0.1)
    attempts.succeeded(0.2)
    attempts.close(0.2)
    cells = seen(router)
    assert (cells[2].requests, cells[2].errors) == (1, 1)
    assert (cells[1].requests, cells[1].errors) == (1, 0)


@pytest.mark.parametrize("error", [InferenceFailed("no"), InvalidRequest("no")])
def test_an_error_that_both_versions_have_is_the_requests(router: Router, error: MeshError) -> None:
    attempts = router.plan(CANARY, 0.0)
    while isinstance(attempts.next(0.0), Try):
        attempts.failed(error, 0.0)
    attempts.close(0.0)
    assert seen(router) == {}


@pytest.mark.parametrize("error", [LinkLost("gone"), NotServing("no"), Saturated("busy")])
def test_what_is_its_nodes_fault_is_not_a_versions(router: Router, error: MeshError) -> None:
    attempts = router.plan(CANARY, 0.0)
    a_try(attempts)
    attempts.failed(error, 0.0)
    a_try(attempts)
    attempts.succeeded(0.1)
    attempts.close(0.1)
    cells = seen(router)
    assert 2 not in cells
    assert cells[1].errors == 0


def test_a_try_that_lost_is_counted_with_the_time_that_it_was_waited_for(router: Router) -> None:
    attempts = router.plan(CANARY._replace(timeout_s=1.0), 0.0)
    a_try(attempts)
    beside = None
    while beside is None:
        beside = attempts.beside(attempts.beside_at)
    attempts.succeeded(0.6, None, beside, run_ms=5.0)
    attempts.close(0.6)
    cells = seen(router)
    assert cells[2].requests == 1
    assert min(cells[2].run_times) > min(cells[1].run_times)


def test_nothing_is_counted_once_a_release_is_over(router: Router) -> None:
    over = Progress(REVISION, "rolled_back", 0, 0)
    router.release_changed("digits", REVISION, PLAN, over)
    assert router.releases.of("digits") is None
    attempts = router.plan(ANY, 0.0)
    assert version(a_try(attempts)) == 1  # though the other one is higher, and ready still
    attempts.succeeded(0.1)


# Which version counts as the newest


def test_the_old_version_counts_as_the_newest_until_the_new_one_is_promoted(
    router: Router, make_replica: MakeReplica
) -> None:
    assert router.resolve("digits", None) == 1
    kept = Progress(REVISION, "keeping", 1, 0)
    router.release_changed("digits", REVISION, PLAN, kept)
    assert router.resolve("digits", None) == 2
    for node in ("alpha", "beta"):
        router.replica_changed(make_replica(node, version=2, state=ReplicaState.FAILED), 0.0)
    assert router.resolve("digits", None) == 1  # better than nobody


def test_without_a_release_the_highest_version_is_the_newest_again(router: Router) -> None:
    router.release_changed("digits", (0, 0), None, None)
    assert router.resolve("digits", None) == 2
    assert router.releases.of("digits") is None
