"""A virtual gateway sends a second try beside a slow one, as the real pipeline does."""

from __future__ import annotations

import random

from meshnode.effects import Effect, StartTimer
from meshnode.routing.load import LinkState
from meshnode.routing.router import Router
from meshnode.routing.table import Replica
from meshnode.sim.gateway import Gateway
from meshnode.sim.requests import GatewayTimer, Request, Stream, Withdrawn
from meshnode.sim.serving import Answered, Asked
from meshnode.types import NodeId, ReplicaState
from meshnode.wire.messages import LoadReport

ME, ALPHA, BETA = NodeId("me"), NodeId("alpha"), NodeId("beta")


class Bench:
    """A gateway with two peers whose answers take 100 ms, as many were seen to do."""

    def __init__(self) -> None:
        self.ended: list[Request] = []
        self.router = Router(ME, "eu", random.Random(1))
        for node in (ALPHA, BETA):
            ready = Replica(node, node, "eu", "", "digits", 1, ReplicaState.READY)
            self.router.replica_changed(ready, 0.0)
            self.router.link_changed(node, LinkState.UP, 0.0)
            self.router.rtt_measured(node, 0.001)
            self.router.load_reported(node, "digits", 1, LoadReport(0, 4, 100.0), 0.0)
        for _ in range(100):
            self.router.answer_times("digits", 1).add(1.0)
            self.router.hedges.request(0.0)
        self.gateway = Gateway(
            ME, self.router, lambda _node: True, lambda _node: None, self.ended.append
        )
        self.request = Request(1, "me", "digits", None, 10.0, 0.0)
        self.first = self.asked(self.gateway.begin(self.request, 0.0))
        self.slow_at = self.look(self.effects)

    def asked(self, effects: list[Effect]) -> tuple[NodeId, Asked]:
        self.effects = effects
        ((node, asked),) = [
            (each.to, each.event)
            for each in effects
            if isinstance(each, Stream) and isinstance(each.event, Asked)
        ]
        return node, asked

    @staticmethod
    def look(effects: list[Effect]) -> tuple[float, GatewayTimer]:
        """Return when a try is to be looked at."""
        return next(
            (each.delay_s, each.timer)
            for each in effects
            if isinstance(each, StartTimer)
            and isinstance(each.timer, GatewayTimer)
            and each.timer.number == 1
        )

    def hedged(self) -> tuple[NodeId, Asked]:
        delay_s, timer = self.slow_at
        return self.asked(self.gateway.due(timer, delay_s))

    def answer(self, asked: tuple[NodeId, Asked], now: float, code: str = "") -> list[Effect]:
        node, what = asked
        return self.gateway.answered(Answered(node, 1, what.attempt, code, None), now)

    def outstanding(self) -> int:
        loads = [self.router.book.load(node, "digits", 1) for node in (ALPHA, BETA)]
        return sum(load.outstanding for load in loads)


def withdrawn(effects: list[Effect]) -> list[tuple[NodeId, int]]:
    return [
        (each.to, each.event.attempt)
        for each in effects
        if isinstance(each, Stream) and isinstance(each.event, Withdrawn)
    ]


def test_the_second_try_answers_and_the_first_is_withdrawn() -> None:
    bench = Bench()
    second = bench.hedged()
    assert {bench.first[0], second[0]} == {ALPHA, BETA}
    effects = bench.answer(second, 0.2)
    assert withdrawn(effects) == [(bench.first[0], 1)]
    assert (bench.request.outcome, bench.request.served_by, bench.request.sends) == (
        "ok", second[0], 2,
    )  # fmt: skip
    assert bench.answer(bench.first, 0.3) == []
    assert (len(bench.ended), bench.outstanding()) == (1, 0)


def test_when_one_of_both_fails_the_other_answers() -> None:
    bench = Bench()
    second = bench.hedged()
    assert bench.answer(bench.first, 0.2, "link_lost") == []
    bench.answer(second, 0.3)
    assert bench.request.ok
    assert bench.request.tried == ((bench.first[0], "link_lost"),)


def test_a_lost_link_fails_its_own_try_only() -> None:
    bench = Bench()
    second = bench.hedged()
    assert bench.gateway.lost(second[0], 0.2) == []
    bench.answer(bench.first, 0.3)
    assert bench.request.ok
    assert bench.outstanding() == 0


def test_a_client_that_goes_withdraws_both() -> None:
    bench = Bench()
    bench.hedged()
    assert len(withdrawn(bench.gateway.abandon(1, 0.2))) == 2
    assert (bench.request.outcome, bench.outstanding()) == ("cancelled", 0)


def test_a_request_whose_time_is_over_ends_with_both() -> None:
    bench = Bench()
    second = bench.hedged()
    bench.gateway.due(GatewayTimer(1, 1, bench.first[0]), 10.0)
    bench.gateway.due(GatewayTimer(1, second[1].attempt, second[0]), 10.0)
    assert bench.request.outcome == "deadline"
    assert bench.outstanding() == 0
