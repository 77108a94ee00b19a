from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from meshnode.errors import LinkLost, ModelNotFound
from meshnode.routing import table as table_module
from meshnode.routing.breaker import Verdict
from meshnode.routing.load import LinkState
from meshnode.routing.request import RoutedRequest
from meshnode.routing.router import Router
from meshnode.routing.tries import GiveUp, Try
from meshnode.types import NodeId, NodeState
from meshnode.wire.messages import LoadReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.routing.table import Replica

    MakeRouter = Callable[..., Router]
    MakeReplica = Callable[..., Replica]

ALPHA = NodeId("alpha")


def test_the_node_itself_is_always_reachable_without_a_round_trip(
    make_replica: MakeReplica,
) -> None:
    router = Router(NodeId("me"), "eu", random.Random(1))
    router.replica_changed(make_replica("me"), 0.0)
    (here,) = router.candidates("digits", None).ready
    assert (here.path.link, here.rtt_ms) == (LinkState.UP, 0.0)
    router.node_removed(NodeId("me"))
    assert router.book.path(NodeId("me")).link is LinkState.UP


def test_an_unmeasured_node_is_taken_to_be_near_in_the_same_region(
    make_replica: MakeReplica,
) -> None:
    router = Router(NodeId("me"), "eu", random.Random(1))
    router.replica_changed(make_replica("near"), 0.0)
    router.replica_changed(make_replica("far", region="us"), 0.0)
    near, far = router.candidates("digits", None).ready
    assert (near.rtt_ms, far.rtt_ms) == (1.0, 50.0)


def test_candidates_are_put_together_once_per_change_of_the_table(
    make_router: MakeRouter, make_replica: MakeReplica
) -> None:
    router = make_router("alpha", "beta")
    before = router.candidates("digits", None)
    router.rtt_measured(ALPHA, 0.1)
    router.link_changed(ALPHA, LinkState.DOWN, 0.0)
    assert router.candidates("digits", 1) is before
    router.replica_changed(make_replica("gamma", state="loading"), 0.0)
    after = router.candidates("digits", 1)
    assert after is not before
    assert after.excluded == (("gamma", "loading"),)
    assert [each.load for each in after.ready] == [each.load for each in before.ready]
    router.node_changed(ALPHA, NodeState.DEAD)
    assert [each.replica.node for each in router.candidates("digits", 1).ready] == ["beta"]


def test_resolving_and_planning_speak_of_the_same_version(
    make_router: MakeRouter, make_replica: MakeReplica
) -> None:
    router = make_router("alpha")
    router.replica_changed(make_replica("alpha", version=7), 0.0)
    assert router.resolve("digits", None) == 7
    step = router.plan(RoutedRequest("digits", None, 1.0), 0.0).next(0.0)
    assert isinstance(step, Try)
    assert step.route.replica.version == 7
    with pytest.raises(ModelNotFound):
        router.resolve("digits", 8)


def test_a_gossiped_report_is_taken_for_known_replicas_only(make_router: MakeRouter) -> None:
    router = make_router("alpha")
    router.load_reported(ALPHA, "digits", 1, LoadReport(5, 2, 3.0), made_at=1.0)
    router.load_reported(ALPHA, "digits", 2, LoadReport(5, 2, 3.0), made_at=1.0)
    router.load_reported(NodeId("beta"), "digits", 1, LoadReport(5, 2, 3.0), made_at=1.0)
    (alpha,) = router.candidates("digits", 1).ready
    assert (alpha.load.in_system, alpha.load.slots, alpha.load.reported_at) == (5, 2, 1.0)
    assert repr(router.book) == "<LoadBook 1 replicas, 2 paths>"


def test_a_removed_replica_is_forgotten_everywhere(make_router: MakeRouter) -> None:
    router = make_router("alpha", "beta")
    attempts = router.plan(RoutedRequest("digits", None, 10.0), 0.0)
    step = attempts.next(0.0)
    assert isinstance(step, Try)
    router.node_removed(ALPHA)
    router.replica_removed(NodeId("beta"), "digits", 1)
    assert repr(router) == (
        "<Router of me: <ReplicaTable 0 replicas of 0 models>, <Breakers 0 closed of 0>, "
        "<RetryBudget 0 of 100 retries used>>"
    )
    assert repr(router.book) == "<LoadBook 0 replicas, 2 paths>"
    attempts.failed(LinkLost("gone"), 0.1)
    assert step.route.candidate.load.outstanding == 0
    last = attempts.next(0.1)
    assert isinstance(last, GiveUp)
    assert isinstance(last.error, ModelNotFound)


def test_a_replica_that_comes_back_is_found_again(
    make_router: MakeRouter, make_replica: MakeReplica
) -> None:
    router = make_router("alpha")
    old = router.candidates("digits", 1)
    router.replica_removed(ALPHA, "digits", 1)
    router.replica_changed(make_replica("alpha"), 1.0)
    assert router.candidates("digits", 1) is not old


def test_a_full_table_says_so(
    make_router: MakeRouter, make_replica: MakeReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = make_router("alpha")
    monkeypatch.setattr(table_module, "MAX_TABLE_REPLICAS", 1)
    assert not router.replica_changed(make_replica("beta"), 0.0)
    assert router.replica_changed(make_replica("alpha", slots=2), 0.0)


@pytest.mark.parametrize("seed", range(5))
def test_the_first_request_already_goes_to_the_node_that_measured_itself_fast(
    make_replica: MakeReplica, seed: int
) -> None:
    """An A100 is told from a laptop by their profiles, before either has reported any load."""
    router = Router(NodeId("me"), "eu", random.Random(seed))
    for name, service_ms in (("laptop", 80.0), ("a100", 0.5), ("silent", 0.0)):
        router.replica_changed(make_replica(name, service_ms=service_ms), 0.0)
        router.link_changed(NodeId(name), LinkState.UP, 0.0)
        router.rtt_measured(NodeId(name), 0.001)
    step = router.plan(RoutedRequest("digits", None, 1.0), 0.0).next(0.0)
    assert isinstance(step, Try)
    assert step.route.replica.node == "a100"


def test_a_node_that_is_lost_again_and_again_is_left_out_for_longer_though_nothing_was_asked_of_it(
    make_router: Callable[..., Router],
) -> None:
    """The first loss is forgiven; then it stays out for two seconds from its return, then four."""
    router, now, waits = make_router("alpha", "beta"), 0.0, []
    router.candidates("digits", None)
    for _ in range(4):
        now += 8.0
        router.link_changed(ALPHA, LinkState.DOWN, now)
        now += 4.0
        router.link_changed(ALPHA, LinkState.UP, now)
        guard = router.breakers.of(ALPHA, "digits", 1)
        waits.append(max(0.0, guard.retry_at - now))
        now += waits[-1]
        guard.record(guard.take(now), Verdict.SUCCESS, now)
    assert waits[0] == 0.0
    assert waits[1:] == [pytest.approx(each, rel=0.2) for each in (2.0, 4.0, 8.0)]


def test_a_node_that_says_goodbye_before_its_link_ends_is_not_to_blame(
    make_router: Callable[..., Router],
) -> None:
    router = make_router("alpha", "beta")
    router.link_changed(ALPHA, LinkState.GOING_AWAY, 1.0)
    router.link_changed(ALPHA, LinkState.DOWN, 2.0)
    assert router.breakers.of(ALPHA, "digits", 1).allows(2.0)


def test_a_new_replica_begins_slowly_beside_those_that_serve(
    make_router: Callable[..., Router], make_replica: Callable[..., Replica]
) -> None:
    router = make_router("alpha", "beta")
    router.replica_changed(make_replica("late"), 100.0)
    router.link_changed(NodeId("late"), LinkState.UP, 100.0)
    asked = RoutedRequest("digits")
    known = {each.replica.node_name: each for each in router.candidates("digits", None).ready}
    ramps = [known["late"].terms(asked, 100.0 + s).ramp for s in (0.0, 1.5, 3.0, 9.0)]
    assert ramps == pytest.approx([2.0, 1.5, 1.0, 1.0])
    assert known["alpha"].terms(asked, 0.0).ramp == 1.0, "where all are new, all are alike"
    rest = known["late"].terms(asked, 101.5)
    assert rest.expected_ms == pytest.approx(known["late"].expected_ms(asked, 101.5))
