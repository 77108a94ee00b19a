"""Failure detection: who is probed when, and what an unanswered probe means (SWIM section 3, 4.3).

One probe, in a period of `probe_interval_s`::

    t = 0          Ping by datagram ─────────────> target          Ack: done
    t = timeout    PingRequest to k helpers ─────> Ping ─> target  Ack back through a helper: it lives
                   Ping as a note over the link ─> target          Ack over the link: it lives
                   a second Ping by datagram ────> target          Ack: done
    0.4 of what is left, in a large mesh: the same once more, by other helpers
    0.8 of what is left                                            Nack: the helper at least is there
    t = interval   no Ack by now: the target is suspect; none by datagram: UDP may be blocked

Targets come round-robin from an order that is shuffled anew after each pass; a new member enters at
a random place of the pass that runs. So the time until a member is probed is bounded by two passes,
which random choice would not give. A member whose link was lost is probed at once, outside of the
order.

In a mesh with links between all, the target's own link stands in where datagrams are lost. In a larger one
few pairs have a link, and a probe has to get through by other means: helpers are asked and answer over
links where they can, and other ones are asked once more. It costs nothing while probes are answered.

Both times grow with this node's doubts about itself (`health.py`), and what answers or does not is what
it judges its health by. A helper whose `Nack` came shows that messages pass, so that a target that is
silent all the same is at fault; helpers that are silent too are the asker's own trouble.

A member that hears of a new suspect may probe it at once (`second_opinion`): a few do, whose accusations
or whose probes' answers then settle the matter sooner than the order would.

A probe blames nobody if this node itself was asleep: each of its timers carries the time at which
it was due, and one that comes more than `late_timer_s` later drops the probe unjudged. It also blames
nobody for an earlier life: the target must still be in the incarnation in which it was asked.

A helper's own ping is a *relay*: it has its own sequence number, and the target's Ack to that number
becomes an Ack to the asker's. Relays are never judged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from meshnode.effects import Effect, Emit, StartTimer
from meshnode.limits import MAX_RELAYED_PROBES
from meshnode.membership.messages import (
    Ack,
    Incarnation,
    Nack,
    Ping,
    PingRequest,
    pack_id,
    unpack_id,
)
from meshnode.membership.timers import (
    NackDue,
    ProbeDeadline,
    ProbePeriod,
    ProbeTimeout,
    RelayExpired,
)

if TYPE_CHECKING:
    import random

    from meshnode.membership.config import MembershipConfig
    from meshnode.membership.coordinates import Coordinates
    from meshnode.membership.health import LocalHealth
    from meshnode.membership.linking import Linking
    from meshnode.membership.member import MemberTable
    from meshnode.membership.outbox import Carrier, Outbox
    from meshnode.types import NodeId

NACK_SHARE: Final = 0.8
"""Share of the helpers' time after which one says that it has no answer yet (Lifeguard, section IV-A):
the rest is for the `Nack` to travel."""

AGAIN_SHARE: Final = 0.4
"""Share of the helpers' time after which a probe in a large mesh asks others: what remains is for a round
trip by way of a helper."""

SECOND_OPINIONS: Final = 2
"""How many members probe a new suspect at once, for each one whose word is wanted: twice as many, since
some hear of it late."""


@dataclass(slots=True)
class ProbeCounts:
    """How this node's probes ended since it started.

    Attributes:
        answered: The target answered itself.
        helped: A helper reached it.
        failed: Nobody did.
        void: This node slept meanwhile; nothing follows.
    """

    answered: int = 0
    helped: int = 0
    failed: int = 0
    void: int = 0


@dataclass(slots=True)
class _Probe:
    target: NodeId
    incarnation: Incarnation
    ends: float
    sent_at: float | None  # None once it is not clear any more which Ping an Ack answers
    helpers: list[NodeId] = field(default_factory=list)
    nacks: set[NodeId] = field(default_factory=set)
    asked_again: list[NodeId] = field(default_factory=list)  # too late to be judged by their nacks
    lives: bool = False  # answered, but not directly by datagram yet


@dataclass(frozen=True, slots=True)
class _Relay:
    asker: NodeId
    sequence: int
    target: NodeId


class Prober:
    """The probes under way: at most one per member, and `MAX_RELAYED_PROBES` for others."""

    def __init__(
        self,
        table: MemberTable,
        outbox: Outbox,
        linking: Linking,
        health: LocalHealth,
        coordinates: Coordinates,
        config: MembershipConfig,
        rng: random.Random,
    ) -> None:
        """Probe the live members of the table."""
        self.coordinates: Final = coordinates
        self._table = table
        self._outbox = outbox
        self._linking = linking
        self._health = health
        self._config = config
        self._rng = rng
        self.counts: Final = ProbeCounts()
        self._order: list[NodeId] = []
        self._waiting: set[NodeId] = set()  # those of the order
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

    def woke(self) -> None:
        """Drop what is under way: this node slept, and its questions or their answers may be lost."""
        self.counts.void += len(self._probes)
        self._probes.clear()

    def member_joined(self, node_id: NodeId) -> None:
        """Give a member that became live a random place in the pass that runs."""
        if node_id not in self._waiting:
            self._waiting.add(node_id)
            self._order.insert(self._rng.randint(0, len(self._order)), node_id)

    def next_period(self, now: float) -> list[Effect]:
        """Probe the next member of the order."""
        period_s = self._health.scale(self._config.probe_interval_s)
        effects: list[Effect] = [StartTimer(ProbePeriod(), period_s)]
        target = self._next_target()
        return effects if target is None else effects + self.probe(target, now)

    def probe(self, target: NodeId, now: float) -> list[Effect]:
        """Probe a live member now, unless that is under way."""
        member = self._table.get(target)
        under_way = (each for each in self._probes.values() if not each.lives)
        if member is None or any(probe.target == target for probe in under_way):
            return []
        sequence = self._next_sequence()
        ends = now + self._health.scale(self._config.probe_interval_s)
        self._probes[sequence] = _Probe(target, member.incarnation, ends, now)
        timeout_s = self._health.scale(self._config.probe_timeout_s)
        return [
            self._outbox.datagram(target, Ping(sequence, coordinate=self.coordinates.wire)),
            StartTimer(ProbeTimeout(sequence, now + timeout_s), timeout_s),
        ]

    def second_opinion(self, suspect: NodeId, now: float) -> list[Effect]:
        """Probe a member that another one accuses, with a probability by which a few nodes do."""
        config = self._config
        accusers = SECOND_OPINIONS * (config.suspicion_confirmations + 1)
        if not config.lifeguard or self._rng.random() * self._table.size >= accusers:
            return []
        return self.probe(suspect, now)

    def timed_out(self, timer: ProbeTimeout, now: float) -> list[Effect]:
        """Try other ways to the target of a probe that has no direct answer yet."""
        probe = self._probes.get(timer.sequence)
        if probe is None:
            return []
        is_again = probe.sent_at is None
        if is_again and probe.lives:
            return []
        if probe.lives or self._slept(timer.due, now):
            del self._probes[timer.sequence]
            return []
        probe.sent_at = None
        count = self._config.indirect_probes
        helpers = self._linking.helpers(probe.target, count, probe.helpers)
        effects = self._ask(helpers, timer.sequence, probe.target)
        if is_again:
            probe.asked_again = helpers
            return effects
        probe.helpers = helpers
        if self._table.is_linked(probe.target):
            effects.append(self._outbox.note(probe.target, Ping(timer.sequence)))
        rest_s = max(0.0, probe.ends - now)
        effects.append(StartTimer(ProbeDeadline(timer.sequence, probe.ends), rest_s))
        if not self._linking.is_full:
            again_s = rest_s * AGAIN_SHARE
            effects.append(StartTimer(ProbeTimeout(timer.sequence, now + again_s), again_s))
        return effects

    def _ask(self, helpers: list[NodeId], sequence: int, target: NodeId) -> list[Effect]:
        """Let helpers ping a target, and ping it once more."""
        request = PingRequest(sequence, pack_id(target))
        effects = [self._to_helper(helper, request) for helper in helpers]
        return [*effects, self._outbox.datagram(target, Ping(sequence))]

    def _to_helper(self, peer: NodeId, message: Carrier) -> Effect:
        """Send what an asker and its helper tell each other, in a large mesh over their link if any."""
        if self._linking.is_full:
            return self._outbox.best(peer, message)
        return self._outbox.surest(peer, message)

    def judge(self, timer: ProbeDeadline, now: float) -> tuple[NodeId | None, list[Effect]]:
        """End a probe; return the member that it shows to be suspect, if any, and what else follows."""
        probe = self._probes.pop(timer.sequence, None)
        if probe is None:
            return None, []
        if probe.lives:
            return None, self._outbox.answered(probe.target, directly=False)
        member = self._table.get(probe.target)
        if self._slept(timer.due, now) or member is None or member.incarnation != probe.incarnation:
            return None, []
        self.counts.failed += 1
        self._health.change(len(probe.helpers) - len(probe.nacks) if probe.helpers else 1)
        return probe.target, []

    def acked(self, sender: NodeId, ack: Ack, now: float, *, by_datagram: bool) -> list[Effect]:
        """Take an answer to a probe of this node or of one that it helps; a stray one changes nothing."""
        relay = self._relays.get(ack.sequence)
        if relay is not None and sender == relay.target:
            del self._relays[ack.sequence]
            return [self._to_helper(relay.asker, Ack(relay.sequence))]
        probe = self._probes.get(ack.sequence)
        if probe is None or sender not in (probe.target, *probe.helpers, *probe.asked_again):
            return []
        effects = self.heard(sender, ack.coordinate)
        if not probe.lives:
            probe.lives = True
            self._health.change(-1)
            if sender == probe.target:
                self.counts.answered += 1
            else:
                self.counts.helped += 1
        if not by_datagram or sender != probe.target:
            return effects  # the datagrams may still be answered until the period ends
        del self._probes[ack.sequence]
        if probe.sent_at is not None:
            self.coordinates.measure(sender, now - probe.sent_at)
        return effects + self._outbox.answered(probe.target, directly=True)

    def heard(self, peer: NodeId, numbers: tuple[float, ...]) -> list[Effect]:
        """Take the coordinate that a live member says is its own."""
        member = self._table.get(peer)
        if member is None or not member.live:
            return []
        refusal = self.coordinates.hear(peer, numbers)
        return [] if refusal is None else [Emit("member.dropped", peer, refusal)]

    def nacked(self, sender: NodeId, nack: Nack) -> None:
        """Take a helper's word that it is there, and has no answer either."""
        probe = self._probes.get(nack.sequence)
        if probe is not None and sender in probe.helpers:
            probe.nacks.add(sender)

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
        effects = [self._outbox.datagram(target, Ping(sequence))]
        if self._config.lifeguard:
            effects.append(StartTimer(NackDue(sequence), self._helping_s * NACK_SHARE))
        else:
            effects.append(StartTimer(RelayExpired(sequence), self._config.probe_interval_s))
        if self._table.is_linked(target):
            effects.append(self._outbox.note(target, Ping(sequence)))
        return effects

    def nack_due(self, timer: NackDue) -> list[Effect]:
        """Tell the asker of a relay without an answer that this node at least is there."""
        relay = self._relays.get(timer.sequence)
        if relay is None:
            return []
        rest_s = self._config.probe_interval_s - self._helping_s * NACK_SHARE
        expiry = StartTimer(RelayExpired(timer.sequence), rest_s)
        return [self._to_helper(relay.asker, Nack(relay.sequence)), expiry]

    @property
    def _helping_s(self) -> float:
        """What is left of a period for helpers, in seconds, if the asker is well."""
        return self._config.probe_interval_s - self._config.probe_timeout_s

    def relay_expired(self, timer: RelayExpired) -> None:
        """Forget a relay that was not answered."""
        self._relays.pop(timer.sequence, None)

    def _next_target(self) -> NodeId | None:
        # At most one refill per call: a pass may consist of members that are gone by now.
        for _ in range(2):
            while self._order:
                node_id = self._order.pop()
                self._waiting.discard(node_id)
                member = self._table.get(node_id)
                if member is not None and member.live:
                    return node_id
            self._order = list(self._table.live)
            self._waiting = set(self._order)
            self._rng.shuffle(self._order)
        return None

    def _next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence

    def _slept(self, due: float, now: float) -> bool:
        """Whether a timer came so late that this node was asleep: it counts that, and blames nobody."""
        if not self._config.lifeguard or now - due <= self._config.late_timer_s:
            return False
        self.counts.void += 1
        self._health.change(1)
        return True
