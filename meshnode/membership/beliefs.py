"""What this node believes about members, and what it does when that changes.

The two doors to the table are here: `accept` takes a record, `hear` takes a rumour; both hold the
rules of `member.py`. What they share is what follows a change: a rumour for others, an event for
people, a probe order, a link, a list on disk.

Nothing unsigned lifts an incarnation: a rumour about one whose record is not held makes this node ask
for the record. Against itself it believes nothing; it answers with a greater counter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from meshnode.effects import Effect, Emit, SendNote, StartTimer
from meshnode.limits import MAX_RECORDS_AWAITED, MAX_TWINS_OUTBID
from meshnode.membership import antientropy
from meshnode.membership.member import OVERRIDES, Member, MemberTable
from meshnode.membership.messages import (
    STATE_CODES,
    Incarnation,
    MemberRecord,
    Rumour,
    leave_bytes,
    pack_id,
    record_flaw,
    sign_record,
    unpack_id,
)
from meshnode.membership.timers import PersistDue, SuspicionExpired
from meshnode.types import NodeId, NodeState

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from meshnode.membership.config import MembershipConfig
    from meshnode.membership.dialling import Dialler
    from meshnode.membership.outbox import Outbox
    from meshnode.membership.probing import Prober


@dataclass(frozen=True, slots=True)
class Signatures:
    """Trust's part of membership, as functions.

    Attributes:
        sign: Ed25519 with this node's key.
        verify_record: Checks signature and admission chain of a record that would change the table;
            returns why it is refused, or None.
        verify: Whether a public key signed these bytes: (public key, bytes, signature).
    """

    sign: Callable[[bytes], bytes]
    verify_record: Callable[[MemberRecord], str | None]
    verify: Callable[[bytes, bytes, bytes], bool]


class Beliefs:
    """Changes the table by the rules, and says what follows."""

    def __init__(
        self,
        table: MemberTable,
        outbox: Outbox,
        prober: Prober,
        dialler: Dialler,
        signatures: Signatures,
        config: MembershipConfig,
        rng: random.Random,
    ) -> None:
        """Work on these parts of one node."""
        self._table = table
        self._outbox = outbox
        self._prober = prober
        self._dialler = dialler
        self._signatures = signatures
        self._config = config
        self._rng = rng
        self._asked: dict[bytes, tuple[Incarnation, float]] = {}
        self._twins: set[int] = set()
        self._is_persisting = False

    def __repr__(self) -> str:
        return f"<Beliefs of {self._table.own_id}: {self._table!r}>"

    def forget_old(self, now: float) -> None:
        """Drop members that have been gone for the retention time, and requests without an answer."""
        for node_id in self._table.reap(now, self._config.retention_s):
            self._outbox.rumours.drop(pack_id(node_id))
            self._outbox.forget(node_id)
        self._asked = {key: asked for key, asked in self._asked.items() if asked[1] > now}

    def persisted(self) -> None:
        """Note that the list on disk is being written: the next change starts a new wait."""
        self._is_persisting = False

    def hear(self, rumour: Rumour, sender: NodeId, now: float) -> list[Effect]:
        """Take a statement about a member's state by the rules of `member.py`."""
        node_id = unpack_id(rumour.subject)
        state = STATE_CODES[rumour.state]
        member = self._table.get(node_id)
        if member is None:
            is_live = state in (NodeState.ALIVE, NodeState.SUSPECT)
            return self._ask(rumour, sender, now) if is_live else []
        if rumour.incarnation > member.incarnation:
            is_own = node_id == self._table.own_id
            if is_own and state is NodeState.LEFT and self._has_signed(member, rumour):
                return self._outlive_twin(rumour.incarnation, now)
            return self._ask(rumour, sender, now)
        if rumour.incarnation < member.incarnation or (member.state, state) not in OVERRIDES:
            return []
        if node_id == self._table.own_id:
            return self._refute(state, sender, now)
        if state is NodeState.LEFT and not self._has_signed(member, rumour):
            return [Emit("member.dropped", sender, f"a leave of {node_id} that it did not sign")]
        origin = unpack_id(rumour.origin) if len(rumour.origin) == len(rumour.subject) else None
        detail = f"told by {sender}"
        return self.believe(member, state, now, detail, origin, rumour.proof)

    def _has_signed(self, member: Member, leave: Rumour) -> bool:
        key = member.record.public_key
        return self._signatures.verify(key, leave_bytes(key, leave.incarnation), leave.proof)

    def believe(
        self,
        member: Member,
        state: NodeState,
        now: float,
        detail: str,
        origin: NodeId | None,
        proof: bytes = b"",
    ) -> list[Effect]:
        """Hold a worse state of a member, tell people and other nodes."""
        node_id = member.node_id
        was_live = member.live
        kept_proof = proof if state is NodeState.LEFT else b""
        changed = self._table.put(member.record, state, now, kept_proof)
        assert changed is not None
        self._outbox.rumours.add(self._table.rumour(changed, origin))
        if state is NodeState.SUSPECT:
            return [Emit("member.suspect", node_id, detail), self.start_suspicion(changed, now)]
        if not was_live:  # dead, and now known to have left before: nobody is told twice
            return self._persist_soon()
        self._dialler.member_gone(node_id)
        self._outbox.forget(node_id)
        effects = [Emit(f"member.{state}", node_id, detail), *self._persist_soon()]
        return effects if self._table.live else effects + self._dialler.dial_everyone(now)

    def start_suspicion(self, member: Member, now: float) -> Effect:
        """Give a suspect its time to refute.

        The time is memberlist's minimum (suspicion.go): it grows with the mesh, as rumours need
        longer to reach the suspect and its refutation to come back.
        """
        config = self._config
        scale = max(1.0, math.log10(self._table.size))
        timeout_s = config.suspicion_multiplier * scale * config.probe_interval_s
        timer = SuspicionExpired(member.node_id, member.incarnation, now + timeout_s)
        return StartTimer(timer, timeout_s)

    def _ask(self, rumour: Rumour, sender: NodeId, now: float) -> list[Effect]:
        """Ask for a record that is not held, over a link: the teller, its subject, or anyone."""
        asked = self._asked.get(rumour.subject)
        if asked is not None and asked[0] >= rumour.incarnation and asked[1] > now:
            return []
        linked = self._table.linked
        if not linked or (asked is None and len(self._asked) >= MAX_RECORDS_AWAITED):
            return []  # anti-entropy will bring it
        subject = unpack_id(rumour.subject)
        near = next((peer for peer in (sender, subject) if self._table.is_linked(peer)), None)
        peer = self._rng.choice(linked) if near is None else near
        self._asked[rumour.subject] = (rumour.incarnation, now + self._config.request_retry_s)
        return [SendNote(peer, note) for note in antientropy.requests([rumour.subject])]

    def accept(self, record: MemberRecord, sender: NodeId, now: float) -> list[Effect]:
        """Take a record if it is newer than the one held; its subject is alive then."""
        node_id = record.node_id
        held = self._table.get(node_id)
        if held is not None and record.version <= held.record.version:
            return []
        reason = record_flaw(record) or self._signatures.verify_record(record)
        if reason is not None:
            return [Emit("member.refused", node_id, f"{reason} (from {sender})")]
        if node_id == self._table.own_id:
            return self._meet_twin(record, now)
        self._asked.pop(pack_id(node_id), None)
        is_same_claim = held is not None and held.incarnation == record.incarnation
        if held is not None and is_same_claim:
            # Two processes with one key; all nodes keep the same one of the two records.
            self._table.put(record, held.state, now, held.proof)
            return [Emit("member.conflict", node_id, "two processes run with this node's key")]
        member = self._table.put(record, NodeState.ALIVE, now)
        if member is None:
            return [Emit("member.refused", node_id, "the table of members is full")]
        self._outbox.rumours.add(self._table.rumour(member))
        return self._announce(member, held, sender) + self._connect(member, held, now)

    def _announce(self, member: Member, held: Member | None, sender: NodeId) -> list[Effect]:
        if held is None:
            return [Emit("member.alive", member.node_id, f"joined; told by {sender}")]
        if not held.live:
            return [Emit("member.alive", member.node_id, f"was {held.state}; told by {sender}")]
        if held.state is NodeState.SUSPECT:
            return [Emit("member.refuted", member.node_id, f"is alive; told by {sender}")]
        return [Emit("member.updated", member.node_id, f"incarnation {member.incarnation}")]

    def _connect(self, member: Member, held: Member | None, now: float) -> list[Effect]:
        """See to probes, links and the list on disk for a member with a new record."""
        record = member.record
        if held is None or not held.live:
            self._prober.member_joined(member.node_id)
        elif (held.record.epoch, held.record.addresses) == (record.epoch, record.addresses):
            return []
        self._dialler.forget_known(member.node_id)
        return self._dialler.member_moved(member.node_id, now) + self._persist_soon()

    def _persist_soon(self) -> list[Effect]:
        if self._is_persisting:
            return []
        self._is_persisting = True
        return [StartTimer(PersistDue(), self._config.persist_delay_s)]

    # This node itself.

    def _refute(self, state: NodeState, sender: NodeId, now: float) -> list[Effect]:
        """Answer an accusation with a greater counter, and show it to the teller at once."""
        before = self._table.own.record
        self.renew(before, Incarnation(before.epoch, before.counter + 1), now)
        effects: list[Effect] = [
            Emit("member.refuted", self._table.own_id, f"{sender} held it {state}")
        ]
        if self._table.is_linked(sender):
            effects += [
                SendNote(sender, note) for note in antientropy.pack([self._table.own.record], [])
            ]
        return effects

    def _meet_twin(self, record: MemberRecord, now: float) -> list[Effect]:
        """Outbid a record that this node's key signed elsewhere: a restored disk, or a copied key.

        A disk that was restored carries an epoch of the past, and the mesh remembers a later one. A
        second process would outbid in turn, so each of them is answered once; people are told.
        """
        if record.boot in self._twins or len(self._twins) >= MAX_TWINS_OUTBID:
            return []
        self._twins.add(record.boot)
        self.renew(self._table.own.record, Incarnation(record.epoch, record.counter + 1), now)
        detail = "another process runs with this node's key, or its data folder was restored"
        return [Emit("member.conflict", self._table.own_id, detail)]

    def _outlive_twin(self, incarnation: Incarnation, now: float) -> list[Effect]:
        """Outbid the leave of another process with this node's key, which bids no more.

        It signed the leave, so the epoch is no stranger's invention. Every such leave is answered,
        however often the twin was met before: it is over, and others would hold this node for gone.
        """
        self.renew(
            self._table.own.record, Incarnation(incarnation.epoch, incarnation.counter + 1), now
        )
        detail = "another process with this node's key has left; this one is still here"
        return [Emit("member.conflict", self._table.own_id, detail)]

    def renew(self, record: MemberRecord, incarnation: Incarnation, now: float) -> None:
        """Hold, sign and spread this node's own record with a new incarnation."""
        epoch, counter = incarnation
        renewed = msgspec.structs.replace(record, epoch=epoch, counter=counter)
        own = self._table.put(sign_record(renewed, self._signatures.sign), NodeState.ALIVE, now)
        assert own is not None
        self._outbox.rumours.add(self._table.rumour(own))
