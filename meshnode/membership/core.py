"""Membership: who is in the mesh, and in which state; SWIM over datagrams and links, without I/O.

How it works as a whole. Each node holds a *table* (`member.py`) of signed records and of what it
believes about their subjects. Four things change it, all of them through `accept` (a record) or
`hear` (a rumour) of `beliefs.py`, which hold the rules of precedence:

- **probing** (`probing.py`): one member per period, round-robin; no ack by its end makes it suspect,
  and a suspect that does not refute in time is dead. The time depends on how many accuse it
  (`suspicion.py`), the patience on how well this node itself is (`health.py`): Lifeguard;
- **news** from others: every change is a rumour that rides on probes and on rounds of gossip of its
  own, a bounded number of times (`rumours.py`, `outbox.py`), and is passed on over a few links at once
  (`pushing.py`). Rumours are small and unsigned; a rumour about an incarnation whose record is not held
  makes this node ask for the record, over a link (`fetching.py`);
- **anti-entropy** (`reconciling.py`, `antientropy.py`): on new links, and with one random linked peer
  every few seconds, views are compared by hash and made equal;
- **this node itself**: it refutes what is said against it, changes its record, leaves.

Links (`linking.py`, `dialling.py`) join all nodes of a small mesh, and each with a few neighbours in a
large one. They carry records, which do not fit datagrams, stand in where UDP is blocked, and their loss
is a hint: the member is probed at once rather than in its turn.

A life, as others see it::

                 record (signed, newer incarnation)
      ┌───────────────────────────┬──────────────┬─────────────┐
      ▼                           │              │             │
    alive ── probe fails ──> suspect ── time ──> dead          │
      │  └──────── rumours (same incarnation) ────┘            │
      └── leave (signed) from any state ──────────────────> left

This node's own entry is alive until it leaves: an accusation against it is answered with a greater
counter, never believed. After a leave the core changes nothing more and only answers, so that the
goodbye can be fetched by those who missed it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshnode.effects import Effect, Emit, Persist, SendDatagram, SendNote
from meshnode.errors import ConfigError, ProtocolError, TooLarge
from meshnode.events import (
    DatagramReceived,
    DialFailed,
    Event,
    Leave,
    LinkDown,
    LinkUp,
    NoteReceived,
    Start,
    TimerFired,
    Woke,
)
from meshnode.limits import MAX_MEMBER_RECORD_BYTES, MAX_PERSISTED_MEMBERS
from meshnode.membership.beliefs import Beliefs, Parts, Signatures
from meshnode.membership.coordinates import Coordinates
from meshnode.membership.dialling import GONE, Dialler
from meshnode.membership.fetching import Fetcher
from meshnode.membership.gossiping import Gossiper
from meshnode.membership.health import LocalHealth
from meshnode.membership.linking import Linking, neighbours
from meshnode.membership.member import Member, MemberTable
from meshnode.membership.messages import (
    CODEC,
    Ack,
    Digest,
    Gossip,
    Incarnation,
    MemberRecord,
    Nack,
    Ping,
    PingRequest,
    RecordRequest,
    Records,
    Summary,
    Sync,
    Unwanted,
    leave_bytes,
    record_flaw,
    write_members,
)
from meshnode.membership.outbox import Outbox
from meshnode.membership.probing import ProbeCounts, Prober
from meshnode.membership.pushing import Pusher
from meshnode.membership.reconciling import Reconciler
from meshnode.membership.suspicion import Suspicions
from meshnode.membership.timers import (
    CheckDue,
    DialDue,
    GossipRound,
    LinkRound,
    LinkSync,
    NackDue,
    PersistDue,
    ProbeDeadline,
    ProbePeriod,
    ProbeTimeout,
    PushRound,
    ReconnectRound,
    RelayExpired,
    RequestRound,
    SuspicionExpired,
    SyncRound,
)
from meshnode.types import Address, NodeId, NodeState

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Mapping

    from meshnode.membership.beliefs import BeliefCounts
    from meshnode.membership.config import MembershipConfig
    from meshnode.membership.reconciling import Reconciling

Talk = Ping | Ack | Nack | PingRequest | Gossip
"""Messages that carry rumours."""

CHANGEABLE: Final = frozenset(
    {"name", "region", "zone", "labels", "addresses", "http", "capabilities", "chain"}
)
"""Fields of its own record that a running node may change."""


WAKE_GRACE_S: Final = 30.0
"""For how long after a sleep a node that hears nobody holds itself for cut off: a laptop is in its network again within
ten seconds, in another one within twenty."""


@dataclass(frozen=True, slots=True)
class MembershipCounts:
    """What a node's membership did: its probes, and what came of them and of others' word."""

    probes: ProbeCounts
    beliefs: BeliefCounts


class Membership:
    """One node's view of its mesh.

    Attributes:
        node_id: This node.
        members: Every member, this node included; read-only and live.
        left: Whether this node has said goodbye.
    """

    def __init__(
        self,
        *,
        record: MemberRecord,
        sign: Callable[[bytes], bytes],
        verify_record: Callable[[MemberRecord], str | None],
        verify_signature: Callable[[bytes, bytes, bytes], bool],
        config: MembershipConfig,
        rng: random.Random,
        seeds: Iterable[Address] = (),
        known: Iterable[MemberRecord] = (),
    ) -> None:
        """Begin alone; nothing is sent before `Start`.

        Args:
            record: This node's own record, signed.
            sign: Ed25519 with this node's key.
            verify_record: Checks signature and admission chain of a record that would change the
                table; returns why it is refused, or None.
            verify_signature: Whether a public key signed these bytes: (public key, bytes, signature).
            config: `LAN`, `WAN`, or of one's own.
            rng: The only source of chance.
            seeds: Where to look for the mesh; anyone who answers and is admitted will do.
            known: Members of an earlier life, from disk; verified before they are dialled.

        Raises:
            ConfigError: if the own record breaks a limit.
            TooLarge: if the own record is too large to spread.
        """
        _require_spreadable(record)
        self.node_id: Final = record.node_id
        self.left = False
        self._config = config
        self._rng = rng
        self._signatures = Signatures(sign, verify_record, verify_signature)
        self._table = MemberTable(record, 0.0)
        self._health = LocalHealth(is_kept=bool(config.lifeguard))
        self._outbox = Outbox(self._table, config)
        self._pusher = Pusher(self._table, config, rng)
        self._fetcher = Fetcher(self._table, config, rng)
        self._gossiper = Gossiper(self._table, self._outbox, config, rng)
        self._linking = Linking(self._table, self._outbox, config, rng)
        self._coordinates = Coordinates(record.node_id, rng)
        self._prober = Prober(
            self._table, self._outbox, self._linking, self._health, self._coordinates, config, rng
        )
        self._dialler = Dialler(self._table, self._linking, config, rng, seeds)
        parts = Parts(
            outbox=self._outbox,
            pusher=self._pusher,
            fetcher=self._fetcher,
            health=self._health,
            suspicions=Suspicions(config),
            linking=self._linking,
            prober=self._prober,
            dialler=self._dialler,
        )
        self._beliefs = Beliefs(self._table, parts, self._signatures, config)
        self._reconciler = Reconciler(self._table, self._beliefs, self._fetcher, config, rng)
        self._known_unverified = tuple(known)
        self._started_at = -math.inf
        # After a sleep: until when silence may be this node's own fault.
        self._alone_until = -math.inf
        self.members: Final[Mapping[NodeId, Member]] = self._table.view

    def __repr__(self) -> str:
        own = self._table.own
        return f"<Membership of {self.node_id} {own.incarnation} {own.state}: {self._table!r}>"

    @property
    def record(self) -> MemberRecord:
        """This node's own record as it is spread now."""
        return self._table.own.record

    @property
    def health(self) -> int:
        """How much this node doubts itself: 0 if it is well, up to 8 if it seems to be at fault."""
        return self._health.count

    @property
    def counts(self) -> MembershipCounts:
        """What happened since the start; live."""
        return MembershipCounts(self._prober.counts, self._beliefs.counts)

    def rtt_s(self, a: NodeId, b: NodeId) -> float | None:
        """Return the estimated round-trip time between any two members in seconds.

        Returns:
            None where nothing is known yet; a link's measurement is better where there is one.
        """
        return self._coordinates.rtt_s(a, b)

    def neighbours_of(self, node_id: NodeId) -> list[NodeId]:
        """Return the other live members that should have links to a member, as its id tells.

        Returns:
            Nobody where the mesh is small, and all should.
        """
        return self._linking.neighbours_of(node_id)

    # The one door.

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take an event and return what is to be done about it.

        Args:
            event: What happened; events and timers of other cores change nothing.
            now: Monotonic seconds, never less than in the call before.
        """
        return self._and_gossip(self._react(event, now))

    def update_record(self, now: float, **changes: Any) -> list[Effect]:
        """Change fields of this node's own record, sign it anew and spread it.

        Args:
            now: Monotonic seconds.
            changes: New values by field name; equal values change nothing.

        Raises:
            ConfigError: if a field may not change, or breaks a limit; nothing was changed.
            TooLarge: if the record would be too large to spread; nothing was changed.
        """
        unknown = sorted(changes.keys() - CHANGEABLE)
        if unknown:
            raise ConfigError(f"a record's {', '.join(unknown)} cannot be changed while it runs")
        before = self.record
        changed = msgspec.structs.replace(before, **changes)
        if changed == before or self.left:
            return []
        _require_spreadable(changed)
        later = Incarnation(before.epoch, before.counter + 1)
        effects = self._beliefs.renew(changed, later, now)
        detail = f"changed its {', '.join(sorted(changes))}"
        return self._and_gossip([Emit("member.updated", self.node_id, detail), *effects])

    def want_links(self, nodes: frozenset[NodeId], now: float) -> list[Effect]:
        """Keep links to these members too, beside those that membership itself needs.

        Args:
            nodes: All of them, such as the nodes that requests go to; those of the call before that
                are not among them are wanted no more. Unknown ones count as soon as they are members.
            now: Monotonic seconds.
        """
        if not self._linking.ask_for(nodes - {self.node_id}) or self.left:
            return []
        return self._dialler.fill(now)

    def evict(self, node_id: NodeId, reason: str, now: float) -> list[Effect]:
        """Forget a member and part with it: it may not come back.

        Membership keeps no list of the evicted: `verify_record` must refuse the member's records from
        now on. This node itself cannot be evicted here; its owner ends it.

        Args:
            node_id: Whom; unknown ones are taken too, since a link to them may be up.
            reason: A sentence, told to the node as its link is closed, and to people.
            now: Monotonic seconds.
        """
        if node_id == self.node_id or self.left:
            return []
        return self._beliefs.evict(node_id, reason, now)

    def _and_gossip(self, effects: list[Effect]) -> list[Effect]:
        return effects if self.left else effects + self._gossiper.wake()

    def _react(self, event: Event, now: float) -> list[Effect]:
        match event:
            case DatagramReceived(sender, payload):
                return self._on_message(sender, payload, now, by_datagram=True)
            case NoteReceived(sender, payload):
                return self._on_message(sender, payload, now, by_datagram=False)
            case LinkUp(peer, address):
                return self._on_link_up(peer, address, now)
            case LinkDown(peer):
                return self._on_link_down(peer, now)
            case _ if self.left:
                return []
            case TimerFired(timer):
                return self._on_timer(timer, now)
            case DialFailed(addresses, expect):
                return self._dialler.failed(addresses, expect, now)
            case Start():
                return self._on_start(now)
            case Woke():
                return self._on_woke(now)
            case Leave():
                return self._on_leave(now)
            case _:
                return []

    def _on_woke(self, now: float) -> list[Effect]:
        """Blame nobody for what this node missed, and have its links back at once.

        Its network may come back later than it does itself. Until it has heard of anybody it takes silence for its
        own fault, for `WAKE_GRACE_S` at most.
        """
        self._alone_until = now + WAKE_GRACE_S
        self._prober.woke()
        return [*self._beliefs.begin_suspicions_anew(now), *self._dialler.woke(now)]

    def _heard_of_others(self) -> None:
        self._alone_until = -math.inf

    def _on_start(self, now: float) -> list[Effect]:
        self._started_at = now
        effects: list[Effect] = []
        usable: list[MemberRecord] = []
        for record in self._known_unverified:
            reason = record_flaw(record) or self._signatures.verify_record(record)
            if reason is None:
                usable.append(record)
            else:
                effects.append(Emit("member.refused", record.node_id, f"known from disk: {reason}"))
        self._dialler.remember(usable)
        effects += self._prober.start()
        effects += self._reconciler.start()
        effects += self._linking.start()
        return effects + self._dialler.start(now)

    def _on_leave(self, now: float) -> list[Effect]:
        proof = self._signatures.sign(leave_bytes(self.record.public_key, self.record.incarnation))
        own = self._table.put(self.record, NodeState.LEFT, now, proof)
        assert own is not None
        self.left = True
        goodbye = self._table.rumour(own)
        self._outbox.rumours.add(goodbye)
        payload = CODEC.encode(Gossip((goodbye,)))
        live = self._table.live
        # Links are reliable; by datagram it goes to several more, in case a link is about to break.
        some = self._rng.sample(live, min(len(live), 2 * self._config.gossip_fanout))
        effects: list[Effect] = [SendNote(peer, payload) for peer in self._table.linked]
        effects += [SendDatagram(peer, payload) for peer in some]
        if self._beliefs.is_unwritten:
            # Whom it learnt of in its last moments is where the next start looks for the mesh.
            effects += self._on_persist_due()
        return [*effects, Emit("member.left", self.node_id, "this node left")]

    # Messages.

    def _on_message(
        self, sender: NodeId, payload: bytes, now: float, *, by_datagram: bool
    ) -> list[Effect]:
        try:
            message = CODEC.decode(payload)
        except ProtocolError as error:
            return [Emit("member.dropped", sender, str(error))]
        self._heard_of_others()
        match message:
            case Ping() | Ack() | Nack() | PingRequest() | Gossip():
                return self._on_talk(sender, message, now, by_datagram=by_datagram)
            case Sync() | Summary() | Digest() | RecordRequest() | Records() if not by_datagram:
                return self._on_reconciling(sender, message, now)
            case Unwanted() if not by_datagram:
                return [] if self.left else self._linking.offered_by(sender)
            case None:
                return []  # a newer version's message
            case _:
                kind = type(message).__name__
                return [Emit("member.dropped", sender, f"{kind} does not travel this way")]

    def _on_talk(
        self, sender: NodeId, message: Talk, now: float, *, by_datagram: bool
    ) -> list[Effect]:
        effects: list[Effect] = []
        for rumour in () if self.left else message.rumours:
            effects += self._beliefs.hear(rumour, sender, now)
        match message:
            case Ping(sequence):
                effects += self._prober.heard(sender, message.coordinate)
                send = self._outbox.datagram if by_datagram else self._outbox.note
                effects.append(send(sender, Ack(sequence, coordinate=self._coordinates.wire)))
            case Ack():
                effects += self._prober.acked(sender, message, now, by_datagram=by_datagram)
            case Nack():
                self._prober.nacked(sender, message)
            case PingRequest() if not self.left:
                effects += self._prober.relay(sender, message)
            case _:
                pass
        return effects

    def _on_reconciling(self, sender: NodeId, message: Reconciling, now: float) -> list[Effect]:
        if self.left:
            return self._reconciler.answer(sender, message)
        return self._reconciler.learn(sender, message, now)

    # Links.

    def _on_link_up(self, peer: NodeId, address: Address, now: float) -> list[Effect]:
        if peer == self.node_id:
            return []
        self._heard_of_others()
        self._table.set_linked(peer, True)
        self._dialler.link_up(peer, address, now)
        self._prober.proven_alive(peer)
        return [] if self.left else self._reconciler.link_up(peer, now)

    def _on_link_down(self, peer: NodeId, now: float) -> list[Effect]:
        self._table.set_linked(peer, False)
        was_agreed = self._linking.link_lost(peer)
        member = self._table.get(peer)
        if self.left or member is None or not member.live:
            return []
        effects = [] if was_agreed else self._prober.probe(peer, now)
        return effects + self._dialler.link_lost(peer, now)

    # Timers.

    def _on_timer(self, timer: object, now: float) -> list[Effect]:
        match timer:
            case ProbePeriod() | ProbeTimeout() | ProbeDeadline() | NackDue() | RelayExpired():
                return self._on_probe_timer(timer, now)
            case SuspicionExpired():
                if now < self._alone_until:
                    return self._beliefs.suspicion_again(timer, now)
                return self._beliefs.suspicion_expired(timer, now)
            case GossipRound():
                return self._gossiper.next_round(now)
            case PushRound():
                return self._pusher.send(now)
            case RequestRound():
                return self._fetcher.ask(now)
            case SyncRound():
                return self._on_sync_round(now)
            case CheckDue():
                return self._reconciler.check(now)
            case LinkSync():
                return self._reconciler.link_settled(timer, now)
            case PersistDue():
                return self._on_persist_due()
            case _:
                return self._on_link_timer(timer, now)

    def _on_link_timer(self, timer: object, now: float) -> list[Effect]:
        match timer:
            case LinkRound():
                return self._linking.next_round(now)
            case ReconnectRound():
                return self._dialler.reconnect(now)
            case DialDue():
                return self._dialler.due(timer, now)
            case _:
                return []  # another core's

    def _on_probe_timer(
        self,
        timer: ProbePeriod | ProbeTimeout | ProbeDeadline | NackDue | RelayExpired,
        now: float,
    ) -> list[Effect]:
        match timer:
            case ProbePeriod():
                return self._prober.next_period(now)
            case ProbeTimeout():
                return self._prober.timed_out(timer, now)
            case NackDue():
                return self._prober.nack_due(timer)
            case RelayExpired():
                self._prober.relay_expired(timer)
                return []
            case ProbeDeadline():
                target, effects = self._prober.judge(timer, now)
                member = None if target is None else self._table.get(target)
                if member is None or now < self._alone_until:
                    return effects
                return [*effects, *self._beliefs.suspect(member, now)]

    def _on_sync_round(self, now: float) -> list[Effect]:
        self._beliefs.forget_old(now)
        if not self._table.is_alone and now - self._started_at >= self._config.retention_s:
            self._dialler.forget_known()
        return self._reconciler.next_round(now)

    def _on_persist_due(self) -> list[Effect]:
        self._beliefs.persisted()
        live, lost = list(self._table.live), self._dialler.lost.values()
        room = MAX_PERSISTED_MEMBERS - len(lost)
        if len(live) > room:
            live = neighbours(self.node_id, live, room)
        gone = [node_id for state in GONE for node_id in self._table.in_state(state)]
        records = [self.members[node_id].record for node_id in (*live, *gone)]
        records[len(live) : len(live)] = lost
        return [Persist("members", write_members([*records, *self._dialler.known]))]


def _require_spreadable(record: MemberRecord) -> None:
    reason = record_flaw(record)
    if reason is None:
        return
    if "bytes" in reason:
        raise TooLarge(
            f"{reason}; a record holds slow facts only, {MAX_MEMBER_RECORD_BYTES} bytes of them"
        )
    raise ConfigError(reason)
