"""Whom a gateway asks how busy it is: stale ones that matter, within limits, and never on a request's way."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from meshnode.limits import LOAD_PROBE_TIMEOUT_S, MAX_PROBES_IN_FLIGHT
from meshnode.routing.choice import Candidates
from meshnode.routing.load import LinkState
from meshnode.routing.probing import (
    FRESH_S,
    PROBES_BURST,
    PROBES_PER_REQUEST,
    PROBES_PER_S,
    Probe,
    Probing,
)
from meshnode.routing.request import RoutedRequest
from meshnode.types import NodeId, RoutingHints
from meshnode.wire.messages import LoadReport
from tests.unit.routing.test_choice import candidate

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.routing.choice import Candidate
    from meshnode.routing.router import Router

REQUEST = RoutedRequest("digits", timeout_s=60.0)
LONG_AGO_S = 1.0


class Gateway:
    """A gateway that was asked for a model, and looks whom to probe."""

    def __init__(self, *pool: Candidate) -> None:
        self.probing = Probing(NodeId("me"))
        self.candidates = Candidates(tuple(pool))
        self.rng = random.Random(1)

    def asked(self, times: int = 1, request: RoutedRequest = REQUEST) -> Gateway:
        for _ in range(times):
            self.probing.asked(request)
        return self

    def due(self, now: float = LONG_AGO_S) -> list[Probe]:
        return self.probing.due(lambda _: self.candidates, now, self.rng)

    def names(self, now: float = LONG_AGO_S) -> set[str]:
        return {probe.node for probe in self.due(now)}


def test_nobody_is_asked_while_no_request_comes() -> None:
    gateway = Gateway(candidate("a"), candidate("b"))
    assert gateway.due() == []
    assert len(gateway.asked().due()) == PROBES_PER_REQUEST
    assert gateway.due(2.0) == []


def test_only_replicas_are_asked_of_whom_nothing_was_heard_lately() -> None:
    gateway = Gateway(candidate("a"), candidate("b"), candidate("c"))
    assert gateway.asked(9).names(FRESH_S / 2) == set()
    gateway.candidates.ready[0].load.report(LoadReport(0, 1, 10.0), 0.9, 0.0)
    assert gateway.asked(9).names(1.0) == {"b", "c"}


def test_who_is_due_for_a_trial_is_asked_for_it_would_be_chosen() -> None:
    slow, usual = candidate("slow", service_ms=10.0), candidate("usual", service_ms=10.0)
    for second in range(61):
        slow.load.report(LoadReport(0, 1, 10.0), float(second), 0.0)
    slow.load.report(LoadReport(0, 1, 100.0), 60.5, 0.0)
    gateway = Gateway(slow, usual)
    assert gateway.asked(9).names(70.0) == {"slow", "usual"}


def test_who_could_not_be_chosen_even_if_idle_is_not_asked() -> None:
    slow = candidate("slow", service_ms=500.0)
    busy = candidate("busy", queued=30)
    gateway = Gateway(candidate("a"), busy, slow, candidate("down", link=LinkState.DOWN))
    assert gateway.asked(9).names() == {"a", "busy"}


def test_a_gateway_does_not_ask_itself_nor_where_there_is_no_choice() -> None:
    assert Gateway(candidate("me"), candidate("a")).asked(9).names() == {"a"}
    assert Gateway(candidate("a")).asked(9).names() == set()


def test_replicas_outside_a_required_region_are_not_asked_for_it() -> None:
    gateway = Gateway(candidate("a"), candidate("b"), candidate("c", region="us"))
    request = RoutedRequest("digits", hints=RoutingHints(region="eu"))
    assert gateway.asked(9, request).names() == {"a", "b"}
    nowhere = RoutedRequest("digits", hints=RoutingHints(region="mars"))
    assert gateway.asked(9, nowhere).names(5.0) == set()


def test_one_probe_at_a_time_is_on_its_way_to_a_replica() -> None:
    gateway = Gateway(candidate("a"), candidate("b"))
    first = gateway.asked(9).due()
    assert {each.node for each in first} == {"a", "b"}
    assert gateway.asked(9).due(1.1) == []
    gateway.probing.ended(first[0])
    assert [each.node for each in gateway.asked(9).due(1.2)] == [first[0].node]
    given_up = gateway.asked(9).due(1.2 + LOAD_PROBE_TIMEOUT_S + 0.1)
    assert {each.node for each in given_up} == {"a", "b"}
    gateway.probing.ended(first[0])  # too late: another is on its way
    assert repr(gateway.probing) == "<Probing: 2 on their way>"


def test_probes_per_second_are_bounded_however_many_requests_come() -> None:
    gateway = Gateway(*(candidate(f"n{number}") for number in range(60)))
    sent = 0
    for step in range(100):
        probes = gateway.asked(1000).due(10.0 + step / 20)
        assert len(probes) <= PROBES_BURST
        sent += len(probes)
        for probe in probes:
            gateway.probing.ended(probe)
    assert sent <= PROBES_PER_S * 5 + PROBES_BURST


def test_what_is_noted_of_requests_is_bounded() -> None:
    gateway = Gateway()
    for number in range(1000):
        gateway.asked(1, RoutedRequest(f"model-{number}"))
    assert len(gateway.probing._asked) == MAX_PROBES_IN_FLIGHT


def test_an_answer_corrects_the_belief_and_a_probe_never_counts_as_a_request(
    make_router: Callable[..., Router],
) -> None:
    router = make_router("a", "b")
    router.load_reported(NodeId("a"), "digits", 1, LoadReport(9, 1, 10.0), 0.0)
    router.load_reported(NodeId("b"), "digits", 1, LoadReport(9, 1, 10.0), 0.0)
    router.plan(REQUEST, 1.0)
    probes = router.probes_due(1.0)
    assert {each.node for each in probes} == {"a", "b"}
    load = router.book.load(probes[0].node, "digits", 1)
    assert load.outstanding == 0
    router.probe_answered(probes[0], LoadReport(0, 1, 10.0), 1.02)
    assert (load.in_system, load.reported_at) == (0, 1.01)
    router.probe_answered(probes[1], LoadReport(3, 1, 10.0), 1.5)
    assert repr(router.probing) == "<Probing: 0 on their way>"


def test_a_model_that_is_gone_is_asked_of_nobody(make_router: Callable[..., Router]) -> None:
    router = make_router("a", "b")
    router.plan(RoutedRequest("gone"), 1.0)
    assert router.probes_due(1.0) == []


def test_a_report_that_never_came_is_not_read_as_an_idle_replica() -> None:
    """Nothing heard is the stalest word there is, and costs as such."""
    silent, idle = candidate("silent"), candidate("idle")
    silent.load.reported_at = float("-inf")
    assert silent.expected_ms(REQUEST, 0.0) > idle.expected_ms(REQUEST, 0.0)
    busy = candidate("busy")
    for _ in range(4):
        busy.load.start(0.0, 1.0)
    busy.load.report(LoadReport(0, 1, float("nan")), 0.0, 1000.0)
    assert busy.load.queued == 4, "own requests that the report cannot have counted"
    assert busy.load.service_ms == 10.0, "a missing number is no zero"
