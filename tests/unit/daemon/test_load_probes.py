"""Probes over links: answered at once, given up in time, and never a request's business."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from meshnode.daemon.load_probes import LoadProbes
from meshnode.errors import LinkLost
from meshnode.limits import LOAD_PROBE_TIMEOUT_S
from meshnode.routing.load import LinkState
from meshnode.routing.request import RoutedRequest
from meshnode.routing.router import Router
from meshnode.routing.table import Replica
from meshnode.types import NodeId, ReplicaState
from meshnode.wire.messages import STREAMS, AskLoad, Failure, LoadReport, LoadTold

if TYPE_CHECKING:
    from collections.abc import Sequence

REQUEST = RoutedRequest("digits")


class Clock:
    def __init__(self) -> None:
        self.time_s = 10.0

    def now(self) -> float:
        return self.time_s

    def wall_s(self) -> float:
        return self.time_s


class FakeConnection:
    """Keeps what is asked, for the test to answer."""

    def __init__(self) -> None:
        self.asked: list[tuple[AskLoad, Any]] = []
        self.cancelled: list[int] = []
        self.is_lost = False

    def open(self, meta: bytes, data: Sequence[bytes], handler: Any) -> int:
        assert not data
        if self.is_lost:
            raise LinkLost("there is no link")
        message = STREAMS.decode(meta)
        assert isinstance(message, AskLoad)
        self.asked.append((message, handler))
        return len(self.asked)

    def cancel(self, stream: int) -> None:
        self.cancelled.append(stream)


class Bench:
    """A gateway with two replicas elsewhere."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.router = Router(NodeId("me"), "eu", random.Random(1))
        self.links = {name: FakeConnection() for name in ("a", "b")}
        for name in self.links:
            replica = Replica(NodeId(name), name, "eu", "", "digits", 1, ReplicaState.READY)
            self.router.replica_changed(replica, 0.0)
            self.router.link_changed(NodeId(name), LinkState.UP, 0.0)
        self.probes = LoadProbes(self.router, self, self.clock)  # type: ignore[arg-type]  # fakes

    def connection(self, node: NodeId) -> FakeConnection | None:
        return self.links.get(node)

    def look(self, *, asked: bool = True) -> None:
        if asked:
            self.router.plan(REQUEST, self.clock.now())
        self.probes.look()

    def in_system(self, name: str) -> int:
        return self.router.book.load(NodeId(name), "digits", 1).in_system


def test_a_replica_that_is_asked_for_its_load_tells_it_to_routing() -> None:
    bench = Bench()
    bench.look(asked=False)
    assert not bench.links["a"].asked
    bench.look()
    [(ask, handler)] = bench.links["a"].asked
    assert ask == AskLoad("digits", 1)
    handler.part(STREAMS.encode(LoadTold(LoadReport(5, 2, 3.0))), memoryview(b""), True)
    assert bench.in_system("a") == 5
    assert repr(bench.probes) == "<LoadProbes: 1 on their way>"


def test_what_is_no_report_says_nothing_of_the_load() -> None:
    bench = Bench()
    bench.router.load_reported(NodeId("a"), "digits", 1, LoadReport(5, 2, 3.0), 9.0)
    bench.look()
    handler = bench.links["a"].asked[0][1]
    handler.part(STREAMS.encode(Failure("not_serving", "gone")), memoryview(b""), True)
    bench.links["b"].asked[0][1].part(b"\xc1garbage", memoryview(b""), True)
    assert bench.in_system("a") == 5
    assert repr(bench.router.probing) == "<Probing: 0 on their way>"


def test_a_stream_that_does_not_end_with_its_answer_is_given_up() -> None:
    bench = Bench()
    bench.look()
    told = STREAMS.encode(LoadTold(LoadReport(5, 2, 3.0)))
    bench.links["a"].asked[0][1].part(told, memoryview(b""), False)
    bench.links["b"].asked[0][1].part(told, memoryview(b""), True)
    assert (bench.in_system("a"), bench.in_system("b")) == (5, 5)
    assert (bench.links["a"].cancelled, bench.links["b"].cancelled) == ([1], [])


def test_probes_without_an_answer_are_given_up() -> None:
    bench = Bench()
    bench.look()
    bench.links["b"].asked[0][1].lost(LinkLost("it broke"))
    bench.clock.time_s += LOAD_PROBE_TIMEOUT_S + 0.1
    bench.look(asked=False)
    assert (bench.links["a"].cancelled, bench.links["b"].cancelled) == ([1], [])
    assert repr(bench.probes) == "<LoadProbes: 0 on their way>"
    assert repr(bench.router.probing) == "<Probing: 0 on their way>"


def test_without_a_usable_link_nothing_is_dialled() -> None:
    bench = Bench()
    del bench.links["a"]
    bench.links["b"].is_lost = True
    bench.look()
    assert repr(bench.router.probing) == "<Probing: 0 on their way>"
