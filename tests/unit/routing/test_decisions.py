"""The log of decisions: exactly the same comes out again, from the log alone."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import InvalidRequest, LinkLost
from meshnode.limits import MAX_CANDIDATES_RECORDED_PER_S, MAX_CANDIDATES_SCORED
from meshnode.routing.choice import choose
from meshnode.routing.conditions import NodeConditions
from meshnode.routing.decisions import Decision, Recorder, read, recorded, replay
from meshnode.routing.load import LinkState
from meshnode.routing.request import RoutedRequest
from meshnode.routing.router import Router
from meshnode.routing.table import Replica
from meshnode.types import NodeId, ReplicaState, RoutingHints
from meshnode.wire.messages import LoadReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.routing.choice import Route

MODEL = "digits"
REGIONS = ("eu", "eu-west", "us")


def world(rng: random.Random, nodes: int) -> Router:
    """Return a router that believes something else of each node."""
    router = Router(NodeId("me"), "eu", random.Random(rng.random()))
    for number in range(nodes):
        node = NodeId(f"n{number:03}")
        region = rng.choice(REGIONS)
        replica = Replica(node, f"name-{number}", region, "", MODEL, 1, ReplicaState.READY, slots=2)
        router.replica_changed(replica, 0.0)
        router.link_changed(node, LinkState.UP, 0.0)
        if rng.random() < 0.2:
            router.link_changed(node, rng.choice([*LinkState]), 0.0)
        if rng.random() < 0.8:
            router.rtt_measured(node, rng.expovariate(20.0))
        if rng.random() < 0.8:
            report = LoadReport(rng.randrange(6), rng.randrange(1, 5), rng.expovariate(0.05))
            router.load_reported(node, MODEL, 1, report, rng.random())
        if rng.random() < 0.3:
            router.conditions_changed(node, conditions(rng))
    for _ in range(rng.randrange(30)):  # something has happened: flights, errors, breakers
        attempts = router.plan(RoutedRequest(MODEL, None, 5.0), 1.0)
        step = attempts.next(1.0)
        if hasattr(step, "route"):
            if rng.random() < 0.4:
                attempts.failed(LinkLost("gone"), 1.1)
            elif rng.random() < 0.5:
                attempts.succeeded(1.0 + rng.random())
            else:
                continue  # it stays in flight
        attempts.close(2.0)
    return router


def conditions(rng: random.Random) -> NodeConditions:
    return NodeConditions(
        labels=frozenset({("gpu", rng.choice(["a100", "h100"]))}),
        draining=rng.random() < 0.2,
        on_battery=rng.random() < 0.3,
        throttled=rng.random() < 0.2,
        cost=rng.choice([0.0, 1.0]),
        memory_free_bytes=rng.choice([None, 1 << 20, 1 << 40]),
    )


def some_request(rng: random.Random) -> RoutedRequest:
    hints = RoutingHints(
        region=rng.choice(["", "eu", "us", "ap"]),
        region_required=rng.random() < 0.5,
        labels=(("gpu", "a100"),) if rng.random() < 0.2 else (),
        session=rng.choice(["", "5f3a"]),
    )
    return RoutedRequest(
        MODEL,
        None,
        rng.choice([0.01, 1.0, 30.0]),
        rows=rng.randrange(1, 9),
        size_bytes=rng.choice([10, 1 << 24]),
        hints=hints,
        saves={NodeId("n001"): 0.5} if rng.random() < 0.3 else {},
        home=NodeId("n001") if rng.random() < 0.3 else None,
    )


def told(route: Route | None) -> tuple[str | None, str, float]:
    return (
        (None, "", 0.0) if route is None else (route.replica.node, route.reason, route.expected_ms)
    )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), nodes=st.integers(0, 12) | st.just(MAX_CANDIDATES_SCORED + 30))
def test_a_decision_is_made_again_from_its_line_exactly(seed: int, nodes: int) -> None:
    rng = random.Random(seed)
    router = world(rng, nodes or 1)
    request = some_request(rng)
    tried = (NodeId("n000"),) if rng.random() < 0.3 else ()
    avoid = ("us",) if rng.random() < 0.3 else ()
    candidates = router.candidates(MODEL, None)
    route = choose(candidates, request, 2.5, random.Random(7), tried=tried, avoid_regions=avoid)
    decision = recorded(1, candidates, request, 2.5, 7, route, tried, avoid)
    again = replay(read(msgspec.json.encode(decision)))
    assert (again.node, again.reason, again.score_ms) == told(route)
    assert again.odd == ""
    assert again.is_same


def test_the_recorder_chooses_as_the_chooser_and_keeps_each_decision() -> None:
    router = world(random.Random(3), 8)
    recorder = router.choose = Recorder()
    for _ in range(20):
        attempts = router.plan(RoutedRequest(MODEL, None, 5.0), 3.0)
        attempts.next(3.0)
        assert attempts.route is not None
        kept = recorder.kept[-1]
        assert (kept.node, kept.score_ms) == (
            attempts.route.replica.node,
            attempts.route.expected_ms,
        )
        assert replay(kept).is_same
        attempts.close(3.0)
    assert [each.number for each in recorder.kept] == [*range(1, 21)]


def test_a_busy_gateway_leaves_decisions_out_and_the_numbers_tell_it() -> None:
    router = world(random.Random(3), 10)
    recorder = Recorder(keep=1000)
    candidates = router.candidates(MODEL, None)
    many = int(MAX_CANDIDATES_RECORDED_PER_S)
    for number in range(10 * many):
        recorder(candidates, RoutedRequest(MODEL), number / (10 * many), random.Random(1))
    recorded_candidates = sum(len(each.seen) for each in recorder.kept)
    assert recorded_candidates <= 2 * MAX_CANDIDATES_RECORDED_PER_S + 10
    assert recorder.decided == 10 * many
    assert recorder.kept[-1].number > 5 * many  # some from each moment, not only the first


def test_the_log_keeps_only_the_last_ones_and_tells_of_each() -> None:
    router = world(random.Random(3), 2)
    recorder = Recorder(keep=3)
    heard: list[Decision] = []
    recorder.on_decision = heard.append
    for _ in range(5):
        recorder(router.candidates(MODEL, None), RoutedRequest(MODEL), 1.0, random.Random(1))
    assert [each.number for each in recorder.kept] == [3, 4, 5]
    assert len(heard) == 5


def test_a_log_that_was_tampered_with_is_told_from_one_that_replays() -> None:
    router = world(random.Random(5), 6)
    recorder = Recorder()
    recorder(router.candidates(MODEL, None), RoutedRequest(MODEL), 1.0, random.Random(1))
    (decision,) = recorder.kept
    assert replay(decision).is_same
    dearer = tuple(
        msgspec.structs.replace(each, score_ms=each.score_ms * 9) if each.node == decision.node else each
        for each in decision.seen
    )  # fmt: skip
    tampered = replay(msgspec.structs.replace(decision, seen=dearer))
    assert not tampered.is_same
    assert "make" in tampered.odd


def test_nothing_that_a_client_sent_is_in_the_log(make_router: Callable[..., Router]) -> None:
    router = make_router("a", "b")
    hints = RoutingHints(session="digest", prefix=b"beginning of a text", caller="key-of-alice")
    recorder = Recorder()
    recorder(
        router.candidates(MODEL, None),
        RoutedRequest(MODEL, hints=hints, size_bytes=77),
        1.0,
        random.Random(1),
    )
    line = msgspec.json.encode(recorder.kept[0])
    assert b"alice" not in line
    assert b"beginning" not in line
    assert b"77" in line


@pytest.mark.parametrize("line", ["", "{}", "[1]", '{"number":1}', b"\xff\xfe", '{"lost":3}'])
def test_what_is_no_decision_is_refused(line: str | bytes) -> None:
    with pytest.raises(InvalidRequest, match="decision"):
        read(line)
