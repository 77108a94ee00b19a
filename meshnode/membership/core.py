"""Membership: who is in the mesh, and in which state; SWIM over datagrams and links, without I/O.

How it works as a whole. Each node holds a *table* (`member.py`) of signed records and of what it
believes about their subjects. Four things change it, all of them through `accept` (a record) or
`hear` (a rumour) of `beliefs.py`, which hold the rules of precedence:

- **probing** (`probing.py`): one member per period, round-robin; no ack by its end makes it suspect,
  and a suspect that does not refute in time is dead;
- **gossip** (`rumours.py`, `outbox.py`): every change is a rumour that rides on probes and on
  rounds of its own, a bounded number of times. Rumours are small and unsigned; a rumour about an
  incarnation whose record is not held makes this node ask the teller for the record, over a link;
- **anti-entropy** (`antientropy.py`): on each new link, and with one random linked peer every few
  seconds, views are compared by hash and made equal;
- **this node itself**: it refutes what is said against it, changes its record, leaves.

Links (`dialling.py`) form a full mesh. They carry records, which do not fit datagrams, stand in where
UDP is blocked, and their loss is a hint: the member is probed at once rather than in its turn.

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
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshnode.effects import Effect, Emit, Persist, SendDatagram, SendNote, StartTimer
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
)
from meshnode.limits import MAX_MEMBER_RECORD_BYTES
from meshnode.membership import antientropy
from meshnode.membership.beliefs import Beliefs, Signatures
from meshnode.membership.dialling import GONE, Dialler
from meshnode.membership.member import Member, MemberTable
from meshnode.membership.messages import (
    CODEC,
    Ack,
    Digest,
    Gossip,
    Incarnation,
    MemberRecord,
    Ping,
    PingRequest,
    RecordRequest,
    Records,
    Sync,
    leave_bytes,
    record_flaw,
    write_members,
)
from meshnode.membership.outbox import Outbox
from meshnode.membership.probing import Prober
from meshnode.membership.timers import (
    DialDue,
    GossipRound,
    PersistDue,
    ProbeDeadline,
    ProbePeriod,
    ProbeTimeout,
    ReconnectRound,
    RelayExpired,
    SuspicionExpired,
    SyncRound,
)
from meshnode.types import Address, NodeId, NodeState

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Mapping

    from meshnode.membership.config import MembershipConfig

CHANGEABLE: Final = frozenset(
    {"name", "region", "zone", "labels", "addresses", "http", "capabilities", "chain"}
)
"""Fields of its own record that a running node may change."""


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
        self._outbox = Outbox(self._table, config)
        self._prober = Prober(self._table, self._outbox, config, rng)
        self._dialler = Dialler(self._table, config, rng, seeds)
        self._beliefs = Beliefs(
            self._table,
            self._outbox,
            self._prober,
            self._dialler,
            self._signatures,
            config,
            rng,
        )
        self._known_unverified = tuple(known)
        self._is_gossiping = False
        self._started_at = -math.inf
        self.members: Final[Mapping[NodeId, Member]] = self._table.view

    def __repr__(self) -> str:
        own = self._table.own
        return f"<Membership of {self.node_id} {own.incarnation} {own.state}: {self._table!r}>"

    @property
    def record(self) -> MemberRecord:
        """This node's own record as it is spread now."""
        return self._table.own.record

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
        self._beliefs.renew(changed, Incarnation(before.epoch, before.counter + 1), now)
        detail = f"changed its {', '.join(sorted(changes))}"
        return self._and_gossip([Emit("member.updated", self.node_id, detail)])

    def _and_gossip(self, effects: list[Effect]) -> list[Effect]:
        """Begin rounds of gossip if there is something to tell, and somebody."""
        can_gossip = not self.left and bool(self._table.live)
        if can_gossip and len(self._outbox.rumours) and not self._is_gossiping:
            self._is_gossiping = True
            delay_s = self._rng.uniform(0.0, self._config.gossip_interval_s)
            effects.append(StartTimer(GossipRound(), delay_s))
        return effects

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
                return self._dialler.failed(addresses, expect)
            case Start():
                return self._on_start(now)
            case Leave():
                return self._on_leave(now)
            case _:
                return []

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
        effects.append(
            StartTimer(SyncRound(), self._rng.uniform(0.0, self._config.sync_interval_s))
        )
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
        return [*effects, Emit("member.left", self.node_id, "this node left")]

    # Messages.

    def _on_message(
        self, sender: NodeId, payload: bytes, now: float, *, by_datagram: bool
    ) -> list[Effect]:
        try:
            message = CODEC.decode(payload)
        except ProtocolError as error:
            return [Emit("member.dropped", sender, str(error))]
        match message:
            case Ping() | Ack() | PingRequest() | Gossip():
                return self._on_gossiping(sender, message, now, by_datagram=by_datagram)
            case Sync() | Digest() | RecordRequest() | Records() if not by_datagram:
                return self._on_reconciling(sender, message, now)
            case None:
                return []  # a newer version's message
            case _:
                kind = type(message).__name__
                return [Emit("member.dropped", sender, f"{kind} does not travel this way")]

    def _on_gossiping(
        self,
        sender: NodeId,
        message: Ping | Ack | PingRequest | Gossip,
        now: float,
        *,
        by_datagram: bool,
    ) -> list[Effect]:
        effects: list[Effect] = []
        for rumour in () if self.left else message.rumours:
            effects += self._beliefs.hear(rumour, sender, now)
        match message:
            case Ping(sequence):
                send = self._outbox.datagram if by_datagram else self._outbox.note
                effects.append(send(sender, Ack(sequence)))
            case Ack():
                effects += self._prober.acked(sender, message, by_datagram=by_datagram)
            case PingRequest() if not self.left:
                effects += self._prober.relay(sender, message)
            case _:
                pass
        return effects

    def _on_reconciling(
        self, sender: NodeId, message: Sync | Digest | RecordRequest | Records, now: float
    ) -> list[Effect]:
        match message:
            case Sync(root):
                notes = [] if root == self._table.root() else antientropy.digests(self._table)
                return [SendNote(sender, note) for note in notes]
            case RecordRequest(subjects):
                notes = antientropy.answer(self._table, subjects)
                return [SendNote(sender, note) for note in notes]
            case _ if self.left:
                return []
            case Records(records, rumours):
                effects: list[Effect] = []
                for record in records:
                    effects += self._beliefs.accept(record, sender, now)
                for rumour in rumours:
                    effects += self._beliefs.hear(rumour, sender, now)
                return effects
            case _:
                return self._on_digest(sender, message, now)

    def _on_digest(self, sender: NodeId, digest: Digest, now: float) -> list[Effect]:
        difference = antientropy.compare(self._table, digest)
        effects: list[Effect] = []
        for rumour in difference.heard:
            effects += self._beliefs.hear(rumour, sender, now)
        notes = antientropy.pack(difference.records, difference.rumours)
        notes += antientropy.requests(difference.wanted)
        return effects + [SendNote(sender, note) for note in notes]

    # Links.

    def _on_link_up(self, peer: NodeId, address: Address, now: float) -> list[Effect]:
        if peer == self.node_id:
            return []
        self._table.set_linked(peer, True)
        self._dialler.link_up(peer, address, now)
        self._prober.proven_alive(peer)
        # One side begins, the answer serves both. Who holds the other for dead tells it this way.
        return self._sync_with(peer) if self.node_id < peer and not self.left else []

    def _on_link_down(self, peer: NodeId, now: float) -> list[Effect]:
        self._table.set_linked(peer, False)
        member = self._table.get(peer)
        if self.left or member is None or not member.live:
            return []
        return self._prober.probe(peer, now) + self._dialler.link_lost(peer, now)

    def _sync_with(self, peer: NodeId) -> list[Effect]:
        return [SendNote(peer, CODEC.encode(Sync(self._table.root())))]

    # Timers.

    def _on_timer(self, timer: object, now: float) -> list[Effect]:
        match timer:
            case ProbePeriod():
                return self._prober.next_period(now)
            case ProbeTimeout():
                return self._prober.timed_out(timer, now)
            case ProbeDeadline():
                return self._on_probe_deadline(timer, now)
            case RelayExpired():
                self._prober.relay_expired(timer)
                return []
            case SuspicionExpired():
                return self._on_suspicion_expired(timer, now)
            case GossipRound():
                return self._on_gossip_round()
            case SyncRound():
                return self._on_sync_round(now)
            case ReconnectRound():
                return self._dialler.reconnect(now)
            case DialDue():
                return self._dialler.due(timer, now)
            case PersistDue():
                return self._on_persist_due()
            case _:
                return []  # another core's

    def _on_probe_deadline(self, timer: ProbeDeadline, now: float) -> list[Effect]:
        target = self._prober.judge(timer, now)
        member = None if target is None else self._table.get(target)
        if member is None or member.state is not NodeState.ALIVE:
            return []
        return self._beliefs.believe(
            member, NodeState.SUSPECT, now, "no answer to a probe", self.node_id
        )

    def _on_suspicion_expired(self, timer: SuspicionExpired, now: float) -> list[Effect]:
        member = self._table.get(timer.node_id)
        if (
            member is None
            or member.state is not NodeState.SUSPECT
            or member.incarnation != timer.incarnation
        ):
            return []
        if now - timer.due > self._config.late_timer_s:
            # This node slept; a refutation may wait unread. The suspect gets its time once more.
            return [self._beliefs.start_suspicion(member, now)]
        return self._beliefs.believe(
            member, NodeState.DEAD, now, "did not refute in time", self.node_id
        )

    def _on_gossip_round(self) -> list[Effect]:
        self._is_gossiping = False
        live = self._table.live
        effects: list[Effect] = []
        for to in self._rng.sample(live, min(self._config.gossip_fanout, len(live))):
            if not len(self._outbox.rumours):
                break
            effects.append(self._outbox.best(to, Gossip(())))
        if live and len(self._outbox.rumours):  # spaced, where the first round came at random
            self._is_gossiping = True
            effects.append(StartTimer(GossipRound(), self._config.gossip_interval_s))
        return effects

    def _on_sync_round(self, now: float) -> list[Effect]:
        self._beliefs.forget_old(now)
        if now - self._started_at >= self._config.retention_s:
            self._dialler.forget_known()
        delay_s = self._config.sync_interval_s * self._rng.uniform(0.8, 1.2)
        effects: list[Effect] = [StartTimer(SyncRound(), delay_s)]
        linked = self._table.linked
        return effects + self._sync_with(self._rng.choice(linked)) if linked else effects

    def _on_persist_due(self) -> list[Effect]:
        self._beliefs.persisted()
        others = [member for member in self._table if member.node_id != self.node_id]
        live = [member.record for member in others if member.live]
        gone = [member.record for state in GONE for member in others if member.state is state]
        return [Persist("members", write_members([*live, *gone, *self._dialler.known]))]


def _require_spreadable(record: MemberRecord) -> None:
    reason = record_flaw(record)
    if reason is None:
        return
    if "bytes" in reason:
        raise TooLarge(
            f"{reason}; a record holds slow facts only, {MAX_MEMBER_RECORD_BYTES} bytes of them"
        )
    raise ConfigError(reason)
