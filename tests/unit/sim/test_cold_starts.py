"""Requests at a virtual gateway wait for a replica as long as at a real one, and for no other reason."""

from __future__ import annotations

import random

import pytest

from meshnode.effects import Effect, StartTimer
from meshnode.gateway.cold_starts import LOOK_S
from meshnode.limits import COLD_GRACE_S, MAX_COLD_WAIT_S, MAX_WAITING_FOR_REPLICAS
from meshnode.routing.load import LinkState
from meshnode.routing.router import Router
from meshnode.routing.table import Goal, Replica
from meshnode.sim.gateway import Gateway
from meshnode.sim.requests import GatewayTimer, Request, Stream
from meshnode.sim.serving import Answered, Asked, sim_manifest
from meshnode.types import NodeId, ReplicaState

ME, ALPHA = NodeId("me"), NodeId("alpha")


class Bench:
    """A gateway that knows nothing yet, and looks as often as it asks to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ended: list[Request] = []
        self.asked: list[Asked] = []
        self.looks: list[tuple[float, GatewayTimer]] = []
        self.router = Router(ME, "eu", random.Random(1))
        self.gateway = Gateway(
            ME, self.router, lambda _node: True, lambda _node: None, self.ended.append
        )

    def alpha(self, state: ReplicaState) -> None:
        replica = Replica(ALPHA, "alpha", "eu", "", "digits", 1, state)
        self.router.replica_changed(replica, self.now)
        self.router.link_changed(ALPHA, LinkState.UP, self.now)

    def send(self, number: int = 1, timeout_s: float = 10.0) -> Request:
        request = Request(number, "me", "digits", None, timeout_s, self.now)
        self.take(self.gateway.begin(request, self.now))
        return request

    def take(self, effects: list[Effect]) -> None:
        for each in effects:
            if isinstance(each, StartTimer) and isinstance(each.timer, GatewayTimer):
                if each.timer.number is None and each.timer.peer == ME:
                    self.looks.append((self.now + each.delay_s, each.timer))
            elif isinstance(each, Stream) and isinstance(each.event, Asked):
                self.asked.append(each.event)

    def run_to(self, until: float) -> None:
        while self.looks and self.looks[0][0] <= until:
            self.now, timer = self.looks.pop(0)
            self.take(self.gateway.due(timer, self.now))
        self.now = until


def test_a_request_waits_for_a_replica_that_loads_and_has_the_rest_of_its_time_then() -> None:
    bench = Bench()
    bench.alpha(ReplicaState.LOADING)
    request = bench.send()
    bench.run_to(4.0)
    assert (request.outcome, bench.asked) == (None, [])
    bench.alpha(ReplicaState.READY)
    bench.run_to(4.0 + 2 * LOOK_S)
    (asked,) = bench.asked
    assert asked.timeout_s == pytest.approx(6.0, abs=2 * LOOK_S)
    bench.gateway.answered(Answered(ALPHA, 1, asked.attempt, "", None), bench.now)
    assert request.ok
    assert bench.ended == [request]
    bench.run_to(20.0)
    assert bench.looks == []  # nobody waits


def test_a_request_waits_no_longer_than_its_time() -> None:
    bench = Bench()
    bench.alpha(ReplicaState.LOADING)
    request = bench.send(timeout_s=3.0)
    bench.run_to(MAX_COLD_WAIT_S)
    assert request.outcome == "deadline"
    assert request.latency_s == pytest.approx(3.0, abs=2 * LOOK_S)


def test_a_gateway_that_has_just_started_hears_first_what_there_is() -> None:
    bench = Bench()
    bench.gateway.starts(0.0)
    bench.run_to(0.5)
    early = bench.send()
    bench.run_to(1.0)
    assert bench.ended == []
    bench.run_to(COLD_GRACE_S + 2 * LOOK_S)
    assert early.outcome == "not_found"
    assert bench.send(2).outcome == "not_found"  # it has heard all by now


def test_a_link_that_broke_has_a_moment_to_be_dialled_again() -> None:
    bench = Bench()
    bench.alpha(ReplicaState.READY)
    bench.take(bench.gateway.lost(ALPHA, 0.0))
    request = bench.send()
    bench.run_to(1.0)
    bench.router.link_changed(ALPHA, LinkState.UP, bench.now)
    bench.run_to(1.0 + 2 * LOOK_S)
    assert [each.number for each in bench.asked] == [1]
    assert request.outcome is None


def test_a_model_that_is_placed_but_not_begun_is_waited_for_only_so_long() -> None:
    bench = Bench()
    bench.router.wanted_changed("digits", {1: Goal(sim_manifest("digits"), "digest", "alpha")})
    request = bench.send()
    bench.run_to(5.0)
    assert request.outcome == "no_replica"
    assert request.latency_s == pytest.approx(COLD_GRACE_S, abs=2 * LOOK_S)


def test_one_look_serves_all_who_wait_and_too_many_do_not() -> None:
    bench = Bench()
    bench.alpha(ReplicaState.LOADING)
    for number in range(MAX_WAITING_FOR_REPLICAS):
        bench.send(number)
    assert len(bench.looks) == 1
    assert bench.send(5000).outcome == "saturated"


def test_who_waits_may_go_and_ends_with_its_gateway() -> None:
    bench = Bench()
    bench.alpha(ReplicaState.LOADING)
    gone, left = bench.send(1), bench.send(2)
    assert bench.gateway.abandon(1, 0.1) == []
    assert (gone.outcome, left.outcome) == ("cancelled", None)
    bench.send(3)
    assert len(bench.looks) == 1
    bench.gateway.close(0.2)
    assert left.outcome == "gateway_lost"
    bench.alpha(ReplicaState.READY)
    bench.run_to(1.0)
    assert (bench.asked, bench.looks) == ([], [])
