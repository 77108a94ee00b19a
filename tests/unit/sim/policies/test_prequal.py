"""Prequal's pool of probes, its rule of hot and cold, and what servers tell it."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from meshnode.routing.request import RoutedRequest
from meshnode.sim.policies.policy import Job, ProbeReply, ReplicaKey, key_of
from meshnode.sim.policies.prequal import (
    MOST_COUNTED,
    POOL_SIZE,
    PROBE_MAX_AGE_S,
    PROBES_PER_CALL,
    LatencyByCount,
    Prequal,
)
from meshnode.types import NodeId

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.routing.choice import Candidate, Candidates

ASKED = RoutedRequest("digits")

HERE = ReplicaKey(NodeId("here"), "digits", 1)


class Gateway:
    """A policy among forty replicas, whose probes the test answers."""

    def __init__(self, candidates: Candidates) -> None:
        self.policy = Prequal()
        self.candidates = candidates
        self.rng = random.Random(1)

    def key(self, number: int) -> ReplicaKey:
        return key_of(self.candidates.ready[number].replica)

    def answer(
        self, number: int, in_flight: int, latency_s: float, now: float = 0.0, rtt_s: float = 0.0
    ) -> None:
        self.policy.probed(self.key(number), ProbeReply(in_flight, latency_s), now, rtt_s)

    def choose(self, now: float = 0.0) -> str:
        route = self.policy.choose(self.candidates, ASKED, now, self.rng)
        assert route is not None
        return route.replica.node_name


@pytest.fixture
def gateway(
    make_candidate: Callable[..., Candidate], make_candidates: Callable[..., Candidates]
) -> Gateway:
    return Gateway(make_candidates(*(make_candidate(f"n{number}") for number in range(40))))


def test_without_probes_the_choice_is_random(gateway: Gateway) -> None:
    gateway.answer(0, 0, 0.001)  # one is too few
    assert len({gateway.choose() for _ in range(60)}) > 20


def test_after_a_call_three_different_replicas_are_probed(gateway: Gateway) -> None:
    gateway.choose()
    probed = [gateway.policy.to_probe(gateway.rng) for _ in range(50)]
    assert all(len(set(each)) == PROBES_PER_CALL for each in probed)
    counts = Counter(each.node for one in probed for each in one)
    assert len(counts) > 30


def test_a_cold_replica_with_the_lowest_latency_is_taken(gateway: Gateway) -> None:
    for number in range(10):
        gateway.answer(number, 3, 0.1)
    gateway.answer(10, 3, 0.02)
    gateway.answer(11, 9, 0.001)  # the quickest, but hot: more requests than 84 % of the probes
    assert gateway.choose() == "n10"


def test_if_all_are_hot_the_one_with_the_fewest_requests_is_taken(gateway: Gateway) -> None:
    """The distribution remembers replies that the pool no longer has."""
    for _ in range(60):
        gateway.answer(0, 0, 0.1, now=-10.0)
    gateway.answer(1, 9, 0.001)
    gateway.answer(2, 7, 0.5)
    gateway.answer(3, 8, 0.002)
    assert gateway.choose() == "n2"


def test_old_probes_count_for_nothing(gateway: Gateway) -> None:
    for number in range(POOL_SIZE):
        gateway.answer(number, 0, 0.001, now=0.0)
    late = PROBE_MAX_AGE_S + 0.01
    gateway.answer(20, 0, 0.5, now=late)
    gateway.answer(21, 0, 0.2, now=late)
    assert gateway.choose(now=late) == "n21"


def test_a_used_probe_counts_one_more_request_and_goes_after_two_uses(gateway: Gateway) -> None:
    """With 40 replicas: 2 / ((1 - 16/40) x 3 - 1) = 2.5 uses, so it goes with the third at latest."""
    for number in range(1, 14):
        gateway.answer(number, 5, 0.1)
    gateway.answer(0, 0, 0.01)
    taken = [gateway.choose() for _ in range(4)]
    assert taken[:2] == ["n0", "n0"]
    assert taken[3] != "n0"


def test_far_replicas_cost_their_round_trip(gateway: Gateway) -> None:
    for number in range(5):
        gateway.answer(number, 1, 0.1, rtt_s=0.2)
    gateway.answer(5, 1, 0.15, rtt_s=0.001)
    assert gateway.choose() == "n5"


def test_the_pool_keeps_the_newest(gateway: Gateway) -> None:
    for number in range(POOL_SIZE + 5):
        gateway.answer(number % 40, 1, 0.001 * (number + 1))
    assert gateway.choose() == "n5"  # the first five were pushed out


# What a server tells.


def approximately(in_flight: int, latency_s: float) -> object:
    return pytest.approx(ProbeReply(in_flight, latency_s))


def test_a_server_tells_how_long_requests_took_that_met_as_many() -> None:
    server = LatencyByCount()
    for number, took_s in enumerate((0.1, 0.2, 0.3)):  # each alone
        server.arrived(HERE, Job(number, 1), None, number)
        server.ended(Job(number, 1), number + took_s, answered=True)
    assert server.probe(HERE) == approximately(0, 0.2)
    server.arrived(HERE, Job(10, 1), None, 10.0)
    server.arrived(HERE, Job(11, 1), None, 10.0)
    server.ended(Job(11, 1), 10.9, answered=True)  # met one
    assert server.probe(HERE) == approximately(1, 0.9)


def test_a_server_counts_refused_withdrawn_and_unknown_requests_rightly() -> None:
    server = LatencyByCount()
    assert server.probe(HERE) == ProbeReply(0, 0.0)
    server.arrived(HERE, Job(1, 1), None, 0.0)
    server.ended(Job(1, 1), 0.001, answered=False)  # refused: says nothing about time
    server.arrived(HERE, Job(2, 1), None, 0.0)
    server.withdrawn(Job(2, 1))
    server.ended(Job(2, 1), 5.0, answered=True)  # it ran to its end for nobody
    server.withdrawn(Job(3, 1))
    assert server.probe(HERE) == ProbeReply(0, 0.0)


def test_what_a_server_remembers_is_bounded() -> None:
    server = LatencyByCount()
    for number in range(2 * MOST_COUNTED):
        server.arrived(HERE, Job(number, 1), None, 0.0)
    for number in range(2 * MOST_COUNTED):
        server.ended(Job(number, 1), 1.0, answered=True)
    assert len(server._latencies[HERE]) == MOST_COUNTED + 1
    server.closed()
    assert server.probe(HERE) == ProbeReply(0, 0.0)
