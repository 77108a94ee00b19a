"""A gateway in virtual time, which routes requests as the real pipeline does.

`Attempts` decides and the gateway does what it says: it sends to a replica, here or over a link, and to another
beside it when the answer is slow, and tells what came of each; the first answer counts, and what is out then is
withdrawn.

A link that owes an answer and falls silent counts as stalled after the same times as a real one
(`LinkConfig`): its requests fail with `LinkLost`, and routing avoids it until it flows again.

A request for which no replica is ready yet waits as long as at a real gateway (`sim.cold_starts`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from meshnode.effects import Effect, StartTimer
from meshnode.errors import Cancelled, LinkLost, MeshError, Saturated, error_of
from meshnode.gateway.admission import Admission, Admitted
from meshnode.gateway.cold_starts import LOOK_S
from meshnode.routing.load import LinkState
from meshnode.routing.probing import Probe
from meshnode.routing.releasing.arms import choose_arm
from meshnode.routing.request import RoutedRequest
from meshnode.routing.tries import Await, GiveUp, Try, Wait
from meshnode.sim.cold_starts import ColdStarts
from meshnode.sim.policies.policy import Job, Policy, ReplicaKey
from meshnode.sim.requests import (
    GATEWAY_LOST,
    OK,
    Ask,
    GatewayTimer,
    ProbeAnswered,
    Probed,
    Request,
    Stream,
    Withdrawn,
)
from meshnode.sim.serving import ENVELOPE_BYTES, Answered, Asked
from meshnode.wire.config import LinkConfig
from meshnode.wire.liveness import STALL_WAIT_RTTS
from meshnode.wire.messages import LoadReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from meshnode.routing.attempts import Attempts
    from meshnode.routing.router import Router
    from meshnode.types import NodeId

_LINK: Final = LinkConfig()
_PROBE_LOOK_S: Final = 0.05  # between looks for whom to ask, as the daemon does
_SAME_TIME_S: Final = 1e-6  # a clock's rounding: a timer this early is on time


@dataclass(eq=False, slots=True)
class _Sent:
    """A try that is out."""

    step: Try
    at: float

    @property
    def node(self) -> NodeId:
        return self.step.route.replica.node

    @property
    def due_at(self) -> float:
        return self.at + self.step.remaining_s


@dataclass(eq=False, slots=True)
class _Open:
    request: Request
    attempts: Attempts
    admitted: Admitted | None = None
    sent: dict[int, _Sent] = field(default_factory=dict)  # by the try's number


@dataclass(eq=False, slots=True)
class _Peer:
    """A peer that owes answers, or did."""

    owes: dict[tuple[int, int], None] = field(default_factory=dict)  # request and try
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
            policy: Chooses instead of the router's own; nothing is hedged then.
        """
        self._policy = policy
        if policy is not None:
            router.choose = policy.choose
            router.config = replace(router.config, hedge_ratio=0.0)
        self._me = me
        self._router = router
        self._is_linked = is_linked
        self._stalled_since = stalled_since
        self._on_end = on_end
        self._open: dict[int, _Open] = {}
        self._peers: dict[NodeId, _Peer] = {}
        self._looked_at = -math.inf  # for whom to ask how busy it is
        self._admission = Admission()
        self._cold = ColdStarts(router)
        self._is_looking = False

    def __repr__(self) -> str:
        return f"<Gateway {self._me[:8]}: {len(self._open)} open, {len(self._cold)} wait>"

    def waiting(self) -> dict[str, int]:
        """Return how many requests wait for a replica, by model."""
        return self._cold.models() if len(self._cold) else {}

    def starts(self, now: float) -> None:
        """The node boots into a mesh that has others, of which it has yet to hear what they serve."""
        self._cold.begins(now)

    def begin(self, request: Request, now: float) -> list[Effect]:
        """Take a client's request."""
        self._router.arrivals.came(request.model)
        try:
            if self._cold.takes(request, now):
                return self._look_for_replicas()
        except Saturated as error:
            self._end_unplanned(request, error.code, now)
            return []
        return self._plan(request, request.timeout_s, now)

    def _plan(self, request: Request, timeout_s: float, now: float) -> list[Effect]:
        asked = self._arm(
            RoutedRequest(request.model, request.version, timeout_s, hints=request.hints)
        )
        try:
            admitted = self._admit(request, timeout_s, now)
        except Saturated as error:
            self._end_unplanned(request, error.code, now)
            return []
        plan = self._router.plan(asked, now)
        opened = self._open[request.number] = _Open(request, plan, admitted)
        return self._next(opened, now)

    def _arm(self, asked: RoutedRequest) -> RoutedRequest:
        """Let a release choose the version of a request that names none, as `meshnode.gateway.releasing` does."""
        router = self._router
        live = router.releases.of(asked.model)
        if live is None or asked.version is not None:
            return asked
        release = live.release
        version = choose_arm(
            release,
            live.progress,
            model=asked.model,
            session=asked.hints.session,
            key_id=asked.hints.caller,
            header=_no_header,
            draw=router.rng.random(),
        )
        if version != release.candidate or not router.is_reachable(asked.model, version):
            return asked
        has_old = router.is_reachable(asked.model, release.baseline)
        fallback = release.baseline if has_old else None
        return asked._replace(version=version, fallback=fallback, is_arm=True)

    def _admit(self, request: Request, timeout_s: float, now: float) -> Admitted | None:
        """Let a request in as the pipeline does; other policies than the mesh's own refuse nobody."""
        if self._policy is not None:
            return None
        return self._admission.enter(request.model, request.hints, timeout_s, now)

    def _look_at_waiting(self, now: float) -> list[Effect]:
        """Plan those that have waited for a replica, and look again while others do."""
        self._is_looking = False
        effects: list[Effect] = []
        for request, waited_s in self._cold.over(now):
            effects += self._plan(request, request.timeout_s - waited_s, now)
        return effects + self._look_for_replicas()

    def _look_for_replicas(self) -> list[Effect]:
        if self._is_looking or not len(self._cold):
            return []
        self._is_looking = True
        return [self._look_at(self._me, LOOK_S)]

    def answered(self, answer: Answered, now: float) -> list[Effect]:
        """Take what a replica said; what comes too late is nobody's."""
        opened = self._open.get(answer.number)
        sent = opened.sent.get(answer.attempt) if opened is not None else None
        if opened is None or sent is None:
            return []
        replica, attempts = sent.step.route.replica, opened.attempts
        self._landed(opened, sent, now)
        report = answer.report if answer.server == self._me else None
        if answer.report is not None and answer.server != self._me:
            load = answer.report
            self._router.load_reported(answer.server, replica.model, replica.version, load, now)
        if answer.code:
            error = error_of(answer.code, "as the peer said")
            if isinstance(error, Saturated) and answer.retry_after_s > 0:
                error.retry_after_s = answer.retry_after_s
            attempts.failed(error, now, report, sent.step)
            return self._next(opened, now)
        run_ms = answer.report.run_ms if answer.report is not None else 0.0
        attempts.succeeded(now, report, sent.step, run_ms)
        opened.request.served_by = answer.server
        opened.request.served_version = replica.version
        return self._withdraw(opened, now) + self._end(opened, OK, now)

    def due(self, timer: GatewayTimer, now: float) -> list[Effect]:
        """Look whether a try is slow or late, or a link silent; or go on after a pause."""
        if timer.number is None:
            own = timer.peer == self._me
            return self._look_at_waiting(now) if own else self._watch(timer.peer, now)
        opened = self._open.get(timer.number)
        if opened is None:
            return []
        if timer.attempt == 0:
            return self._next(opened, now)
        sent = opened.sent.get(timer.attempt)
        if sent is None:
            return []
        if sent.due_at <= now + _SAME_TIME_S:
            self._landed(opened, sent, now)
            opened.attempts.timed_out(now, sent.step)
            return [self._withdrawn(opened, sent), *self._next(opened, now)]
        effects = self._beside(opened, now)
        return [*effects, self._look_again(opened, sent, now)]

    def abandon(self, number: int, now: float) -> list[Effect]:
        """The client is gone: end its request, and the work on it wherever that is done."""
        waiting = self._cold.drop(number)
        if waiting is not None:
            self._end_unplanned(waiting, Cancelled.code, now)
        opened = self._open.get(number)
        if opened is None:
            return []
        return self._withdraw(opened, now) + self._end(opened, Cancelled.code, now)

    def probed(self, answer: ProbeAnswered, now: float) -> None:
        """Hand a replica's reply to whoever asked: the policy, or the mesh's own routing."""
        probed = answer.probed
        if self._policy is None:
            if isinstance(answer.reply, LoadReport):
                probe = Probe(*probed.replica, probed.sent_at)
                self._router.probe_answered(probe, answer.reply, now)
        elif not isinstance(answer.reply, LoadReport):
            self._policy.probed(probed.replica, answer.reply, now, now - probed.sent_at)

    def lost(self, peer: NodeId, now: float) -> list[Effect]:
        """The link to a peer is gone, and what it owed with it."""
        self._router.link_changed(peer, LinkState.DOWN, now)
        known = self._peers.get(peer)
        if known is not None:
            known.is_stalled = False
        return self._fail_all(peer, LinkLost("the link broke"), now)

    def close(self, now: float) -> None:
        """The gateway's process is gone: its clients see their connections break."""
        for opened in [*self._open.values()]:
            self._withdraw(opened, now)
            self._end(opened, GATEWAY_LOST, now)
        for request in self._cold.drop_all():
            self._end_unplanned(request, GATEWAY_LOST, now)

    def drop(self, now: float) -> None:
        """The gateway's machine is off: its clients hear nothing."""
        for opened in self._open.values():
            self._withdraw(opened, now)
        self._open.clear()
        self._cold.drop_all()

    def _next(self, opened: _Open, now: float) -> list[Effect]:
        while True:
            self._face(opened)
            step = opened.attempts.next(now)
            if isinstance(step, GiveUp):
                return self._withdraw(opened, now) + self._end(opened, step.error.code, now)
            if isinstance(step, Await):
                return []
            if isinstance(step, Wait):
                again = GatewayTimer(opened.request.number, 0, self._me)
                return [StartTimer(again, step.pause_s)]
            if self._can_send(step):
                return self._send(opened, step, now)
            opened.attempts.failed(LinkLost("there is no usable link to the node"), now, None, step)

    def _beside(self, opened: _Open, now: float) -> list[Effect]:
        """Send another try beside those that are out, if it is time."""
        if opened.attempts.beside_at > now + _SAME_TIME_S:
            return []
        self._face(opened)
        step = opened.attempts.beside(now)
        if step is None:
            return []
        if self._can_send(step):
            return self._send(opened, step, now)
        opened.attempts.failed(LinkLost("there is no usable link to the node"), now, None, step)
        return []

    def _face(self, opened: _Open) -> None:
        if self._policy is not None:
            self._policy.facing(opened.request.work_s, opened.request.good_until)

    def _can_send(self, step: Try) -> bool:
        node = step.route.replica.node
        return node == self._me or self._is_usable(node)

    def _look_again(self, opened: _Open, sent: _Sent, now: float) -> Effect:
        """Look at a try when something can be due."""
        timer = GatewayTimer(opened.request.number, sent.step.number, sent.node)
        return StartTimer(timer, max(0.0, min(opened.attempts.beside_at, sent.due_at) - now))

    def _send(self, opened: _Open, step: Try, now: float) -> list[Effect]:
        replica = step.route.replica
        request = opened.request
        number = request.number
        request.sends += 1
        asked = Asked(
            self._me,
            number,
            step.number,
            replica.model,
            replica.version,
            request.work_s,
            ENVELOPE_BYTES + request.request_bytes,
            ENVELOPE_BYTES + request.response_bytes,
            step.remaining_s,
            request.hints.priority,
        )
        sent = opened.sent[step.number] = _Sent(step, now)
        effects: list[Effect] = [self._look_again(opened, sent, now)]
        if self._policy is not None:
            self._policy.sent(replica, Job(number, step.number), request.work_s, now)
            effects += self._probes(now)
        elif now - self._looked_at >= _PROBE_LOOK_S:
            self._looked_at = now
            effects += self._own_probes(now)
        if replica.node == self._me:
            effects.append(Ask(asked))
            return effects
        peer = self._peers.setdefault(replica.node, _Peer())
        if not peer.owes:
            peer.since = now
        peer.owes[number, step.number] = None
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

    def _own_probes(self, now: float) -> Iterator[Effect]:
        """Ask whom routing wants to hear from, as the daemon does beside its requests."""
        for probe in self._router.probes_due(now):
            if self._is_usable(probe.node):
                replica = ReplicaKey(probe.node, probe.model, probe.version)
                yield Stream(probe.node, Probed(self._me, replica, now))
            else:
                self._router.probing.ended(probe)

    def _landed(self, opened: _Open, sent: _Sent, now: float) -> None:
        """A try is over: its peer owes nothing for it any more, and what still comes of it is too late."""
        number, attempt = opened.request.number, sent.step.number
        if self._policy is not None:
            replica = sent.step.route.replica
            self._policy.ended(replica, Job(number, attempt), now, now - sent.at)
        peer = self._peers.get(sent.node)
        if peer is not None:
            peer.owes.pop((number, attempt), None)
        del opened.sent[attempt]

    def _withdraw(self, opened: _Open, now: float) -> list[Effect]:
        """Nobody waits for what is out still: end the plan, and the work wherever it is done."""
        effects: list[Effect] = []
        for sent in [*opened.sent.values()]:
            self._landed(opened, sent, now)
            effects.append(self._withdrawn(opened, sent))
        opened.attempts.close(now)
        return effects

    def _withdrawn(self, opened: _Open, sent: _Sent) -> Effect:
        return Stream(sent.node, Withdrawn(opened.request.number, sent.step.number))

    def _end(self, opened: _Open, outcome: str, now: float) -> list[Effect]:
        del self._open[opened.request.number]
        if opened.admitted is not None:
            error = None if outcome == OK else error_of(outcome, "")
            opened.admitted.end(now, error, opened.attempts.alone_s)
        opened.request.tried = opened.attempts.tried
        opened.request.end(outcome, now)
        self._on_end(opened.request)
        return []

    def _end_unplanned(self, request: Request, outcome: str, now: float) -> None:
        """End a request that no replica was asked to answer."""
        request.end(outcome, now)
        self._on_end(request)

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
            self._router.link_changed(peer, LinkState.UP, now)
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
        self._router.link_changed(peer, LinkState.STALLED, now)
        effects = self._fail_all(peer, LinkLost("the link stalled"), now)
        return [self._look_at(peer, _LINK.stall_ping_after_s), *effects]

    def _fail_all(self, peer: NodeId, error: MeshError, now: float) -> list[Effect]:
        known = self._peers.get(peer)
        effects: list[Effect] = []
        for number, attempt in [*known.owes] if known is not None else []:
            opened = self._open.get(number)
            sent = opened.sent.get(attempt) if opened is not None else None
            if opened is None or sent is None:  # its request ended with one before it
                continue
            self._landed(opened, sent, now)
            opened.attempts.failed(error, now, None, sent.step)
            effects += self._next(opened, now)
        return effects


def _no_header(_name: str) -> None:
    """Calls of a scenario have no headers."""
