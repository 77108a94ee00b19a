"""Failure detection: who is probed when, and what an unanswered probe means (SWIM section 3, 4.3).

One probe, in a period of `probe_interval_s`::

    t = 0          Ping by datagram ─────────────> target          Ack: done
    t = timeout    PingRequest to k helpers ─────> Ping ─> target  Ack back through a helper: done
                   Ping as a note over the link ─> target          Ack over the link: done
    t = interval   no Ack by now: the target is suspect

Targets come round-robin from an order that is shuffled anew after each pass; a new member enters at
a random place of the pass that runs. So the time until a member is probed is bounded by two passes,
which random choice would not give. A member whose link was lost is probed at once, outside of the
order.

A probe blames nobody if this node itself was asleep: each of its timers carries the time at which
it was due, and one that comes more than `late_timer_s` later drops the probe unjudged. It also blames
nobody for an earlier life: the target must still be in the incarnation in which it was asked.

A helper's own ping is a *relay*: it has its own sequence number, and the target's Ack to that number
becomes an Ack to the asker's. Relays are never judged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshnode.effects import Effect, StartTimer
from meshnode.limits import MAX_RELAYED_PROBES
from meshnode.membership.messages import Ack, Incarnation, Ping, PingRequest, pack_id, unpack_id
from meshnode.membership.timers import ProbeDeadline, ProbePeriod, ProbeTimeout, RelayExpired

if TYPE_CHECKING:
    import random

    from meshnode.membership.config import MembershipConfig
    from meshnode.membership.member import MemberTable
    from meshnode.membership.outbox import Outbox
    from meshnode.types import NodeId


@dataclass(slots=True)
class _Probe:
    target: NodeId
    incarnation: Incarnation
    helpers: list[NodeId] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Relay:
    asker: NodeId
    sequence: int
    target: NodeId


class Prober:
    """The probes under way: at most one per member, and `MAX_RELAYED_PROBES` for others."""

    def __init__(
        self, table: MemberTable, outbox: Outbox, config: MembershipConfig, rng: random.Random
    ) -> None:
        """Probe the live members of the table."""
        self._table = table
        self._outbox = outbox
        self._config = config
        self._rng = rng
        self._order: list[NodeId] = []
        self._probes: dict[int, _Probe] = {}
        self._relays: dict[int, _Relay] = {}
        # A random start, so that an ack to an earlier life of this node fits no probe of this one.
        self._sequence = rng.getrandbits(48)

    def __repr__(self) -> str:
        targets = [probe.target for probe in self._probes.values()]
        return f"<Prober probing {targets}, {len(self._relays)} relays, {len(self._order)} to go>"

    def start(self) -> list[Effect]:
        """Begin at a random point of a period, so that nodes started together do not probe in step."""
        return [StartTimer(ProbePeriod(), self._rng.uniform(0.0, self._config.probe_interval_s))]

    def member_joined(self, node_id: NodeId) -> None:
        """Give a member that became live a random place in the pass that runs."""
        if node_id not in self._order:
            self._order.insert(self._rng.randint(0, len(self._order)), node_id)

    def next_period(self, now: float) -> list[Effect]:
        """Probe the next member of the order."""
        effects: list[Effect] = [StartTimer(ProbePeriod(), self._config.probe_interval_s)]
        target = self._next_target()
        return effects if target is None else effects + self.probe(target, now)

    def probe(self, target: NodeId, now: float) -> list[Effect]:
        """Probe a live member now, unless that is under way."""
        member = self._table.get(target)
        if member is None or any(probe.target == target for probe in self._probes.values()):
            return []
        sequence = self._next_sequence()
        self._probes[sequence] = _Probe(target, member.incarnation)
        timeout_s, period_s = self._config.probe_timeout_s, self._config.probe_interval_s
        return [
            self._outbox.datagram(target, Ping(sequence)),
            StartTimer(ProbeTimeout(sequence, now + timeout_s), timeout_s),
            StartTimer(ProbeDeadline(sequence, now + period_s), period_s),
        ]

    def timed_out(self, timer: ProbeTimeout, now: float) -> list[Effect]:
        """Try other ways to the target of a probe that has no direct answer yet."""
        probe = self._probes.get(timer.sequence)
        if probe is None:
            return []
        if self._is_late(timer.due, now):
            del self._probes[timer.sequence]
            return []
        others = [node_id for node_id in self._table.live if node_id != probe.target]
        count = min(self._config.indirect_probes, len(others))
        probe.helpers = self._rng.sample(others, count)
        request = PingRequest(timer.sequence, pack_id(probe.target))
        effects = [self._outbox.best(helper, request) for helper in probe.helpers]
        if self._table.is_linked(probe.target):
            effects.append(self._outbox.note(probe.target, Ping(timer.sequence)))
        return effects

    def judge(self, timer: ProbeDeadline, now: float) -> NodeId | None:
        """Return the member that a probe shows to be suspect, or None."""
        probe = self._probes.pop(timer.sequence, None)
        if probe is None or self._is_late(timer.due, now):
            return None
        member = self._table.get(probe.target)
        if member is None or member.incarnation != probe.incarnation:
            return None
        return probe.target

    def acked(self, sender: NodeId, ack: Ack, *, by_datagram: bool) -> list[Effect]:
        """Take an answer to a probe of this node or of one that it helps; a stray one changes nothing."""
        relay = self._relays.get(ack.sequence)
        if relay is not None and sender == relay.target:
            del self._relays[ack.sequence]
            return [self._outbox.best(relay.asker, Ack(relay.sequence))]
        probe = self._probes.get(ack.sequence)
        if probe is None or (sender != probe.target and sender not in probe.helpers):
            return []
        del self._probes[ack.sequence]
        return self._outbox.answered(probe.target, directly=by_datagram and sender == probe.target)

    def proven_alive(self, node_id: NodeId) -> None:
        """Drop a probe of a member that has shown itself in another way: a link came up."""
        for sequence, probe in list(self._probes.items()):
            if probe.target == node_id:
                del self._probes[sequence]

    def relay(self, asker: NodeId, request: PingRequest) -> list[Effect]:
        """Ping a member for another one, by every way there is: the asker has tried the first."""
        target = unpack_id(request.target)
        if self._table.get(target) is None or len(self._relays) >= MAX_RELAYED_PROBES:
            return []
        sequence = self._next_sequence()
        self._relays[sequence] = _Relay(asker, request.sequence, target)
        effects = [
            self._outbox.datagram(target, Ping(sequence)),
            StartTimer(RelayExpired(sequence), self._config.probe_interval_s),
        ]
        if self._table.is_linked(target):
            effects.append(self._outbox.note(target, Ping(sequence)))
        return effects

    def relay_expired(self, timer: RelayExpired) -> None:
        """Forget a relay that was not answered."""
        self._relays.pop(timer.sequence, None)

    def _next_target(self) -> NodeId | None:
        # At most one refill per call: a pass may consist of members that are gone by now.
        for _ in range(2):
            while self._order:
                member = self._table.get(self._order.pop())
                if member is not None and member.live:
                    return member.node_id
            self._order = list(self._table.live)
            self._rng.shuffle(self._order)
        return None

    def _next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence

    def _is_late(self, due: float, now: float) -> bool:
        return now - due > self._config.late_timer_s
