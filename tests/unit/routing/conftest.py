"""A fleet in virtual time: queues with slots, gateways with routers, one heap of events."""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from meshnode.errors import LinkLost
from meshnode.models.manifest import Manifest
from meshnode.routing.load import LinkState
from meshnode.routing.request import RoutedRequest
from meshnode.routing.router import Router
from meshnode.routing.table import Replica
from meshnode.routing.tries import GiveUp, Try
from meshnode.types import NodeId, ReplicaState
from meshnode.wire.messages import LoadReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.routing.attempts import Attempts

MODEL = "digits"


@pytest.fixture
def make_replica() -> Callable[..., Replica]:
    """Make a ready replica of `digits` version 1; every field can be overridden."""

    def make(node: str, **fields: object) -> Replica:
        values: dict[str, object] = {
            "node": NodeId(node),
            "node_name": node,
            "region": "eu",
            "zone": "a",
            "model": MODEL,
            "version": 1,
            "state": ReplicaState.READY,
        }
        return Replica(**(values | fields))  # type: ignore[arg-type]  # fields of many types

    return make


@pytest.fixture
def make_router(make_replica: Callable[..., Replica]) -> Callable[..., Router]:
    """Make a router of node `me` in `eu` with linked, ready replicas: names, or (name, region)."""

    def make(*nodes: str | tuple[str, str], seed: int = 1) -> Router:
        router = Router(NodeId("me"), "eu", random.Random(seed))
        for node in nodes:
            name, region = (node, "eu") if isinstance(node, str) else node
            router.replica_changed(make_replica(name, region=region), now=0.0)
            router.link_changed(NodeId(name), LinkState.UP, 0.0)
            router.rtt_measured(NodeId(name), 0.001)
        return router

    return make


@pytest.fixture
def manifest() -> Manifest:
    """A manifest without tensors or files."""
    return Manifest(MODEL, 1, "onnx", "onnxruntime_onnx", (), (), 0, (), "model.onnx")


@dataclass
class Server:
    """A node with a queue: first in, first out, `slots` at a time."""

    name: str
    speed: float
    slots: int = 4
    rtt_s: float = 0.002
    frozen: bool = False
    running: int = 0
    received: int = 0
    service_ms: float = 0.0
    queue: deque[tuple[float, Callable[[], None]]] = field(default_factory=deque)


@dataclass
class Outcome:
    """Latencies in seconds of what was answered, and the requests that were not."""

    latencies_s: list[float] = field(default_factory=list)
    errors: int = 0
    tries: int = 0

    def quantile_ms(self, share: float) -> float:
        """Return a quantile of the latencies, in milliseconds."""
        ordered = sorted(self.latencies_s)
        return ordered[int(share * len(ordered))] * 1000


class Fleet:
    """Servers, gateways and a clock that jumps from event to event."""

    def __init__(
        self, servers: list[Server], gateways: int, seed: int, mean_size_ms: float
    ) -> None:
        self.now = 0.0
        self.rng = random.Random(seed)
        self.servers = {server.name: server for server in servers}
        self.mean_size_ms = mean_size_ms
        self.outcome = Outcome()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        for server in servers:
            server.service_ms = mean_size_ms / server.speed
        self.routers = [self._router(f"gateway-{number}") for number in range(gateways)]

    @property
    def capacity_per_s(self) -> float:
        """Requests per second that all servers together can run."""
        return sum(s.slots * s.speed for s in self.servers.values()) * 1000 / self.mean_size_ms

    def at(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do something later."""
        self._order += 1
        heapq.heappush(self._events, (self.now + delay_s, self._order, action))

    def run(self, load: float, duration_s: float, place: Callable[[], None] | None = None) -> None:
        """Send Poisson arrivals at a share of the capacity for a time; let all of them end."""
        rate = load * self.capacity_per_s
        arrival = 0.0
        while arrival < duration_s:
            arrival += self.rng.expovariate(rate)
            self.at(arrival, place or self.request)
        while self._events:
            self.now, _, action = heapq.heappop(self._events)
            action()

    def request(self) -> None:
        """Send one request through a gateway drawn at random."""
        router = self.rng.choice(self.routers)
        attempts = router.plan(RoutedRequest(MODEL, None, 60.0), self.now)
        self._try(attempts, self._size_s(), self.now)

    def request_by_capacity(self) -> None:
        """Send one request the way a static, capacity-weighted balancer would."""
        servers = list(self.servers.values())
        server = self.rng.choices(servers, [s.speed * s.slots for s in servers])[0]
        began = self.now
        self._serve(
            server, self._size_s(), lambda: self.outcome.latencies_s.append(self.now - began)
        )

    def _size_s(self) -> float:
        return self.rng.expovariate(1.0) * self.mean_size_ms / 1000

    def _router(self, name: str) -> Router:
        router = Router(NodeId(name), "eu", random.Random(name))
        for server in self.servers.values():
            node = NodeId(server.name)
            ready = Replica(node, server.name, "eu", "", MODEL, 1, ReplicaState.READY)
            router.replica_changed(ready, 0.0)
            router.link_changed(node, LinkState.UP, 0.0)
            router.rtt_measured(node, server.rtt_s)
            router.load_reported(node, MODEL, 1, self._report(server), 0.0)
        return router

    @staticmethod
    def _report(server: Server) -> LoadReport:
        return LoadReport(server.running + len(server.queue), server.slots, server.service_ms)

    def _try(self, attempts: Attempts, size_s: float, began: float) -> None:
        step = attempts.next(self.now)
        if isinstance(step, GiveUp):
            self.outcome.errors += 1
            return
        assert isinstance(step, Try)  # here nobody is busy, and nobody waits for a replica
        self.outcome.tries += 1
        server = self.servers[step.route.replica.node]
        if server.frozen:
            self._let_it_hang(server, attempts, step, size_s, began)
            return

        def answered() -> None:
            attempts.succeeded(self.now, self._report(server))
            self.outcome.latencies_s.append(self.now - began)

        self._serve(server, size_s, answered)

    def _let_it_hang(
        self, server: Server, attempts: Attempts, step: Try, size_s: float, began: float
    ) -> None:
        """A frozen server takes requests and says nothing; its link notices within a second."""
        server.received += 1

        def stalled() -> None:
            attempts.failed(LinkLost("stalled"), self.now)
            self._try(attempts, size_s, began)

        self.at(min(1.0, step.remaining_s), stalled)

    def _serve(self, server: Server, size_s: float, answered: Callable[[], None]) -> None:
        def arrive() -> None:
            server.received += 1
            server.queue.append((size_s, answered))
            self._start_next(server)

        self.at(server.rtt_s / 2, arrive)

    def _start_next(self, server: Server) -> None:
        if server.running == server.slots or not server.queue:
            return
        size_s, answered = server.queue.popleft()
        server.running += 1
        run_s = size_s / server.speed

        def done() -> None:
            server.running -= 1
            server.service_ms += 0.05 * (run_s * 1000 - server.service_ms)
            self._start_next(server)
            self.at(server.rtt_s / 2, answered)

        self.at(run_s, done)


def mixed_servers() -> list[Server]:
    """Return 20 nodes of 4 slots: 12 slow, 6 ten times and 2 fifty times as fast (TARGETS.md)."""
    speeds = [1.0] * 12 + [10.0] * 6 + [50.0] * 2
    return [Server(f"node-{number:02}", speed) for number, speed in enumerate(speeds)]


@pytest.fixture
def mixed_fleet() -> Callable[..., Fleet]:
    """Make that fleet; a request takes a slow node 500 ms on average."""

    def make(gateways: int = 4, seed: int = 1) -> Fleet:
        return Fleet(mixed_servers(), gateways, seed, mean_size_ms=500.0)

    return make
