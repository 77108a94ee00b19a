"""Interleaved requests with every kind of ending, while links and replicas come and go."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import (
    Cancelled,
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
    LinkLost,
    MeshError,
    NotServing,
    Saturated,
    TooLarge,
)
from meshnode.routing.breaker import BreakerState
from meshnode.routing.config import RoutingConfig
from meshnode.routing.load import LinkState
from meshnode.routing.request import RoutedRequest
from meshnode.routing.router import Router
from meshnode.routing.table import Replica
from meshnode.routing.tries import Await, GiveUp, Try, Wait
from meshnode.types import NodeId, NodeState, ReplicaState
from meshnode.wire.messages import LoadReport

if TYPE_CHECKING:
    from meshnode.routing.attempts import Attempts

NODES = [NodeId(name) for name in ("alpha", "beta", "gamma", "delta")]
CALLERS_MISTAKES = [InvalidRequest, TooLarge]
ERRORS: list[type[MeshError]] = [
    LinkLost, NotServing, Saturated, InferenceFailed, DeadlineExceeded, Cancelled,
    *CALLERS_MISTAKES,
]  # fmt: skip


@dataclass
class World:
    """A router with four replicas in two regions, and requests in every stage."""

    rng: random.Random
    errors: list[type[MeshError]]
    now: float = 0.0
    flying: list[Attempts] = field(default_factory=list)
    out: list[Try] = field(default_factory=list)  # beside each of `flying`
    tried: dict[int, list[NodeId]] = field(default_factory=dict)
    requests: list[float] = field(default_factory=list)
    retries: list[float] = field(default_factory=list)
    hedges: list[float] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # So few retries that the budget does run out, and as many hedges as make a difference.
        config = RoutingConfig(retry_floor_per_s=0.3, hedge_ratio=0.2)
        self.router = Router(NodeId("me"), "eu", random.Random(7), config)
        for _ in range(100):  # so that hedges go out from the start
            self.router.answer_times("digits", 1).add(1.0)
        for node in NODES:
            self.announce(node, ReplicaState.READY)
            self.router.link_changed(node, LinkState.UP, self.now)

    def announce(self, node: NodeId, state: ReplicaState) -> None:
        region = "eu" if node in NODES[:2] else "us"
        replica = Replica(node, node, region, "", "digits", 1, state)
        self.router.replica_changed(replica, self.now)

    def step(self) -> None:
        self.now += self.rng.choice([0.0, 0.01, 1.0, 3.0])
        action = self.rng.choice(
            ["begin", "begin", "end", "end", "beside", "beside", "link", "state", "node"]
        )
        node = self.rng.choice(NODES)
        if action == "begin":
            self.requests.append(self.now)
            self.advance(
                self.router.plan(
                    RoutedRequest("digits", None, self.rng.choice([0.5, 10.0])), self.now
                )
            )
        elif action == "end" and self.flying:
            self.end(self.rng.randrange(len(self.flying)))
        elif action == "beside" and self.flying:
            self.beside(self.rng.choice(self.flying))
        elif action == "link":
            self.router.link_changed(node, self.rng.choice(list(LinkState)), self.now)
        elif action == "state":
            self.announce(node, self.rng.choice([ReplicaState.READY, ReplicaState.LOADING]))
        elif action == "node":
            self.router.node_changed(node, self.rng.choice(list(NodeState)))

    def advance(self, attempts: Attempts) -> None:
        step = attempts.next(self.now)
        if isinstance(step, Wait):
            assert attempts.flying == 0
            step = attempts.next(self.now)  # its pause is over at once
        if isinstance(step, Await):
            assert attempts.flying > 0
            return
        if isinstance(step, GiveUp):
            self.trace.append(str(step.error))
            attempts.close(self.now)
            self.forget(attempts)
            return
        assert isinstance(step, Try)
        if self.tried.setdefault(id(attempts), []):
            self.retries.append(self.now)
        self.sent(attempts, step)

    def beside(self, attempts: Attempts) -> None:
        """Look whether another try may be sent beside one, as when its time has come."""
        before = self.router.hedges.granted
        step = attempts.beside(self.now)
        if step is None:
            return
        is_hedge = self.router.hedges.granted > before
        (self.hedges if is_hedge else self.retries).append(self.now)
        self.sent(attempts, step)

    def sent(self, attempts: Attempts, step: Try) -> None:
        node = step.route.replica.node
        self.check_eligible(node)
        seen = self.tried[id(attempts)]
        assert node not in seen, "a node was tried twice"
        assert len(seen) < 3
        seen.append(node)
        self.flying.append(attempts)
        self.out.append(step)
        self.trace.append(attempts.header)

    def forget(self, attempts: Attempts) -> None:
        """No try of a request is out any more."""
        kept = [at for at, each in enumerate(self.flying) if each is not attempts]
        self.flying = [self.flying[at] for at in kept]
        self.out = [self.out[at] for at in kept]

    def check_eligible(self, node: NodeId) -> None:
        group = self.router.table.lookup("digits", 1)
        assert node in [replica.node for replica in group.ready]
        assert self.router.book.path(node).link is LinkState.UP

    def end(self, index: int) -> None:
        attempts, step = self.flying.pop(index), self.out.pop(index)
        report = self.rng.choice([None, LoadReport(self.rng.randrange(9), 2, 5.0)])
        how = self.rng.choice(["success", "stream", "close", "timeout", *self.errors])
        if how == "success":
            attempts.succeeded(self.now, report, step)
        elif how == "close":
            attempts.close(self.now)
        elif how == "timeout":
            attempts.timed_out(self.now, step)
        elif how == "stream":
            attempts.first_byte(self.now, step)
            assert attempts.flying == 1
            attempts.failed(LinkLost("in the middle"), self.now, None, step)
            assert isinstance(attempts.next(self.now), GiveUp)
        else:
            assert isinstance(how, type)
            attempts.failed(how("x"), self.now, report, step)
        self.advance(attempts)

    def outstanding(self) -> int:
        loads = [self.router.book.load(node, "digits", 1) for node in NODES]
        return sum(load.outstanding for load in loads)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_counts_are_conserved_no_node_is_tried_twice_and_only_eligible_ones_are(seed: int) -> None:
    world = World(random.Random(seed), ERRORS)
    keep_alive = []  # identities of plans must stay unique
    for _ in range(80):
        world.step()
        keep_alive.extend(world.flying)
        assert world.outstanding() == len(world.flying)
        recent = sum(at > world.now - 10 for at in world.retries)
        requests = sum(at > world.now - 10 for at in world.requests)
        assert recent <= max(0.2 * requests, 3)
        assert sum(at > world.now - 10 for at in world.hedges) <= 0.2 * requests
    for attempts in world.flying:
        attempts.close(world.now)
    assert world.outstanding() == 0


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_a_callers_mistake_never_counts_against_a_replica(seed: int) -> None:
    router = World(random.Random(seed), []).router
    rng = random.Random(seed)
    for number in range(50):
        attempts = router.plan(RoutedRequest("digits", None, 10.0), number)
        attempts.next(number)
        attempts.failed(rng.choice(CALLERS_MISTAKES)("bad"), number)
        attempts.next(number)
    for candidate in router.candidates("digits", 1).ready:
        assert candidate.breaker.state is BreakerState.CLOSED
        assert candidate.breaker.epoch == 0
        assert candidate.load.error_rate(50.0) == 0.0
        assert candidate.load.rho(50.0) == 1.0


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_the_same_seed_gives_the_same_decisions(seed: int) -> None:
    traces = []
    for _ in range(2):
        world = World(random.Random(seed), ERRORS)
        keep_alive = []
        for _ in range(60):
            world.step()
            keep_alive.extend(world.flying)
        traces.append(world.trace)
    assert traces[0] == traces[1]
