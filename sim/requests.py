"""Requests in virtual time: a gateway that routes them as the real pipeline does.

A `Request` is made once and ends once: with `ok`, with an error's code, or with `gateway_lost` where
its gateway went away. Between the two, `Attempts` decides and the gateway does what it says: it
sends to a replica, here or over a link, waits for the first byte, and tells what came of it.

A link that owes an answer and falls silent counts as stalled after the same times as a real one
(`LinkConfig`): its requests fail with `LinkLost`, and routing avoids it until it flows again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from meshnode.effects import Effect, StartTimer
from meshnode.errors import Cancelled, LinkLost, MeshError, error_of
from meshnode.events import Event
from meshnode.routing.attempts import Attempts, GiveUp, Try
from meshnode.routing.load import LinkState
from meshnode.sim.policies.policy import Job, Policy, ProbeReply, ReplicaKey
from meshnode.sim.serving import ENVELOPE_BYTES, Answered, Asked
from meshnode.wire.config import LinkConfig
from meshnode.wire.liveness import STALL_WAIT_RTTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from meshnode.routing.router import Router
    from meshnode.types import NodeId

OK: Final = "ok"
GATEWAY_LOST: Final = "gateway_lost"
"""Outcomes that are no error's code: an answer; a gateway that is down, crashed or stopped."""

_LINK: Final = LinkConfig()
_SAME_TIME_S: Final = 1e-6  # a clock's rounding: a timer this early is on time


class EndedTwice(AssertionError):
    """A request got a second outcome.

    Attributes:
        invariant: Its name in `meshnode.sim.invariants`.
    """

    invariant = "one-answer"


@dataclass(eq=False, slots=True)
class Request:
    """One client's request, from its making to its outcome.

    Attributes:
        number: Counts the requests of a mesh.
        gateway: Name of the node it was sent to.
        model: What it asks for.
        version: The version it insists on, or None.
        timeout_s: Seconds that it may take.
        made_at: When it was made (virtual seconds).
        work_s: How long it runs on a device of speed 1; None for what the model's behaviour says.
        request_bytes: Size of its body.
        response_bytes: Size of the answer's body.
        on_end: Told of it once it has its outcome.
        good_until: When the answer has to be at the gateway, to be of use to the client.
        outcome: `ok`, an error's code, `gateway_lost`, or None while it is open.
        ended_at: When it ended.
        served_by: The node that answered.
        served_version: The version that answered.
        tried: Node name and error code of each try that failed.
        sends: How often it was sent to a replica.
    """

    number: int
    gateway: str
    model: str
    version: int | None
    timeout_s: float
    made_at: float
    work_s: float | None = None
    request_bytes: int = 1024
    response_bytes: int = 1024
    on_end: Callable[[Request], None] | None = None
    good_until: float = math.inf
    outcome: str | None = None
    ended_at: float = 0.0
    served_by: NodeId | None = None
    served_version: int | None = None
    tried: tuple[tuple[str, str], ...] = ()
    sends: int = 0

    @property
    def ok(self) -> bool:
        """Whether it was answered."""
        return self.outcome == OK

    @property
    def latency_s(self) -> float:
        """Seconds from its making to its end."""
        return self.ended_at - self.made_at

    def end(self, outcome: str, now: float) -> None:
        """Take the outcome; there is exactly one."""
        if self.outcome is not None:
            raise EndedTwice(f"{self} ended a second time, with {outcome}")
        self.outcome = outcome
        self.ended_at = now


@dataclass(frozen=True, slots=True)
class RequestMade(Event):
    """A client sends a request to this node."""

    request: Request


@dataclass(frozen=True, slots=True)
class ClientGone(Event):
    """A client does not wait for its answer any more."""

    number: int


@dataclass(frozen=True, slots=True)
class Withdrawn(Event):
    """A gateway no longer waits for a try."""

    number: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Probed(Event):
    """A gateway's policy asks how busy a replica is."""

    gateway: NodeId
    replica: ReplicaKey
    sent_at: float


@dataclass(frozen=True, slots=True)
class ProbeAnswered(Event):
    """What a probed replica says."""

    probed: Probed
    reply: ProbeReply


@dataclass(frozen=True, slots=True)
class Stream(Effect):
    """Send this to a peer over its link."""

    to: NodeId
    event: Event


@dataclass(frozen=True, slots=True)
class Ask(Effect):
    """Run this on the own host."""

    asked: Asked


@dataclass(frozen=True, slots=True)
class GatewayTimer:
    """The first byte of a try is due; or, without a number, a peer's link is to be looked at."""

    number: int | None
    attempt: int
    peer: NodeId


@dataclass(eq=False, slots=True)
class _Open:
    request: Request
    attempts: Attempts
    attempt: int = 0
    step: Try | None = None
    sent_at: float = 0.0


@dataclass(eq=False, slots=True)
class _Peer:
    """A peer that owes answers, or did."""

    owes: dict[int, None] = field(default_factory=dict)
    since: float = 0.0  # when it began to
    is_watched: bool = False
    is_stalled: bool = False


class Gateway:
    """One boot of a node's gateway."""

    def __init__(
        self,
        me: NodeId,
        router: Router,
        is_linked: Callable[[NodeId], bool],
        stalled_since: Callable[[NodeId], float | None],
        on_end: Callable[[Request], None],
        policy: Policy | None = None,
    ) -> None:
        """Route with `router`.

        Args:
            me: This node.
            router: Where requests go.
            is_linked: Whether there is an open link to a peer.
            stalled_since: Since when nothing gets through on it, or None.
            on_end: Told of each request that has its outcome.
            policy: Chooses instead of the router's own.
        """
        self._policy = policy
        if policy is not None:
            router.choose = policy.choose
        self._me = me
        self._router = router
        self._is_linked = is_linked
        self._stalled_since = stalled_since
        self._on_end = on_end
        self._open: dict[int, _Open] = {}
        self._peers: dict[NodeId, _Peer] = {}

    def __repr__(self) -> str:
        return f"<Gateway {self._me[:8]}: {len(self._open)} open>"

    def begin(self, request: Request, now: float) -> list[Effect]:
        """Take a client's request."""
        plan = self._router.plan(request.model, request.version, request.timeout_s, now)
        opened = self._open[request.number] = _Open(request, plan)
        return self._next(opened, now)

    def answered(self, answer: Answered, now: float) -> list[Effect]:
        """Take what a replica said; what comes too late is nobody's."""
        opened = self._open.get(answer.number)
        if opened is None or opened.attempt != answer.attempt or opened.step is None:
            return []
        replica = opened.step.route.replica
        self._landed(opened, now)
        report = answer.report if answer.server == self._me else None
        if answer.report is not None and answer.server != self._me:
            load = answer.report
            self._router.load_reported(answer.server, replica.model, replica.version, load, now)
        if answer.code:
            opened.attempts.failed(error_of(answer.code, "as the peer said"), now, report)
            return self._next(opened, now)
        opened.attempts.succeeded(now, report)
        opened.request.served_by = answer.server
        opened.request.served_version = replica.version
        return self._end(opened, OK, now)

    def due(self, timer: GatewayTimer, now: float) -> list[Effect]:
        """Look whether a try is late, or a link silent."""
        if timer.number is None:
            return self._watch(timer.peer, now)
        opened = self._open.get(timer.number)
        if opened is None or opened.attempt != timer.attempt:
            return []
        self._landed(opened, now)
        opened.attempts.timed_out(now)
        withdrawn = Stream(timer.peer, Withdrawn(timer.number, timer.attempt))
        return [withdrawn, *self._next(opened, now)]

    def abandon(self, number: int, now: float) -> list[Effect]:
        """The client is gone: end its request, and the work on it wherever that is done."""
        opened = self._open.get(number)
        if opened is None:
            return []
        effects: list[Effect] = []
        if opened.step is not None:
            node, attempt = opened.step.route.replica.node, opened.attempt
            self._landed(opened, now)
            effects = [Stream(node, Withdrawn(number, attempt))]
        opened.attempts.close(now)
        return effects + self._end(opened, Cancelled.code, now)

    def probed(self, answer: ProbeAnswered, now: float) -> None:
        """Hand a replica's reply to the policy that asked."""
        if self._policy is not None:
            probed = answer.probed
            self._policy.probed(probed.replica, answer.reply, now, now - probed.sent_at)

    def lost(self, peer: NodeId, now: float) -> list[Effect]:
        """The link to a peer is gone, and what it owed with it."""
        self._router.link_changed(peer, LinkState.DOWN)
        known = self._peers.get(peer)
        if known is not None:
            known.is_stalled = False
        return self._fail_all(peer, LinkLost("the link broke"), now)

    def close(self, now: float) -> None:
        """The gateway's process is gone: its clients see their connections break."""
        for opened in [*self._open.values()]:
            if opened.step is not None:
                self._landed(opened, now)
            opened.attempts.close(now)
            self._end(opened, GATEWAY_LOST, now)

    def drop(self, now: float) -> None:
        """The gateway's machine is off: its clients hear nothing."""
        for opened in self._open.values():
            if opened.step is not None:
                self._landed(opened, now)
            opened.attempts.close(now)
        self._open.clear()

    def _next(self, opened: _Open, now: float) -> list[Effect]:
        while True:
            if self._policy is not None:
                self._policy.facing(opened.request.work_s, opened.request.good_until)
            step = opened.attempts.next(now)
            if isinstance(step, GiveUp):
                return self._end(opened, step.error.code, now)
            opened.attempt += 1
            opened.step = step
            node = step.route.replica.node
            if node == self._me or self._is_usable(node):
                return self._send(opened, step, now)
            opened.attempts.failed(LinkLost("there is no usable link to the node"), now)

    def _send(self, opened: _Open, step: Try, now: float) -> list[Effect]:
        replica = step.route.replica
        request = opened.request
        number = request.number
        request.sends += 1
        asked = Asked(
            self._me,
            number,
            opened.attempt,
            replica.model,
            replica.version,
            request.work_s,
            ENVELOPE_BYTES + request.request_bytes,
            ENVELOPE_BYTES + request.response_bytes,
        )
        opened.sent_at = now
        late = GatewayTimer(number, opened.attempt, replica.node)
        effects: list[Effect] = [StartTimer(late, step.first_byte_timeout_s)]
        if self._policy is not None:
            self._policy.sent(replica, Job(number, opened.attempt), request.work_s, now)
            effects += self._probes(now)
        if replica.node == self._me:
            effects.append(Ask(asked))
            return effects
        peer = self._peers.setdefault(replica.node, _Peer())
        if not peer.owes:
            peer.since = now
        peer.owes[number] = None
        effects.append(Stream(replica.node, asked))
        if not peer.is_watched:
            peer.is_watched = True
            effects.append(self._look_at(replica.node, _LINK.stall_ping_after_s))
        return effects

    def _probes(self, now: float) -> Iterator[Effect]:
        assert self._policy is not None
        for replica in self._policy.to_probe(self._router.rng):
            if replica.node == self._me or self._is_usable(replica.node):
                yield Stream(replica.node, Probed(self._me, replica, now))

    def _landed(self, opened: _Open, now: float) -> None:
        """A try is over: its peer owes nothing for it any more."""
        assert opened.step is not None
        replica = opened.step.route.replica
        if self._policy is not None:
            job = Job(opened.request.number, opened.attempt)
            self._policy.ended(replica, job, now, now - opened.sent_at)
        peer = self._peers.get(replica.node)
        if peer is not None:
            peer.owes.pop(opened.request.number, None)
        opened.step = None
        opened.attempt += 1  # what still comes of it is too late

    def _end(self, opened: _Open, outcome: str, now: float) -> list[Effect]:
        del self._open[opened.request.number]
        opened.request.tried = opened.attempts.tried
        opened.request.end(outcome, now)
        self._on_end(opened.request)
        return []

    # Links that owe an answer.

    def _is_usable(self, peer: NodeId) -> bool:
        known = self._peers.get(peer)
        return self._is_linked(peer) and (known is None or not known.is_stalled)

    def _look_at(self, peer: NodeId, delay_s: float) -> Effect:
        return StartTimer(GatewayTimer(None, 0, peer), delay_s)

    def _watch(self, peer: NodeId, now: float) -> list[Effect]:
        known = self._peers[peer]
        silent_since = self._stalled_since(peer)
        if silent_since is None and known.is_stalled:
            known.is_stalled = False
            self._router.link_changed(peer, LinkState.UP)
        if not known.owes and not known.is_stalled:
            known.is_watched = False
            return []
        if silent_since is None or known.is_stalled:
            return [self._look_at(peer, _LINK.stall_ping_after_s)]
        rtt_s = (self._router.book.path(peer).rtt_ms or 0.0) / 1000
        patience_s = _LINK.stall_ping_after_s + max(_LINK.stall_after_s, STALL_WAIT_RTTS * rtt_s)
        wait_s = max(silent_since, known.since) + patience_s - now
        if wait_s > _SAME_TIME_S:
            return [self._look_at(peer, wait_s)]
        known.is_stalled = True
        self._router.link_changed(peer, LinkState.STALLED)
        effects = self._fail_all(peer, LinkLost("the link stalled"), now)
        return [self._look_at(peer, _LINK.stall_ping_after_s), *effects]

    def _fail_all(self, peer: NodeId, error: MeshError, now: float) -> list[Effect]:
        known = self._peers.get(peer)
        effects: list[Effect] = []
        for number in [*known.owes] if known is not None else []:
            opened = self._open[number]
            self._landed(opened, now)
            opened.attempts.failed(error, now)
            effects += self._next(opened, now)
        return effects
