"""What this node believes about members, and what it does when that changes.

The two doors to the table are here: `accept` takes a record, `hear` takes a rumour; both hold the
rules of `member.py`. What they share is what follows a change: a rumour for others, news for linked
peers, an event for people, a suspect's time, a probe order, a link, a list on disk.

Nothing unsigned lifts an incarnation: a rumour about one whose record is not held makes this node ask
for the record. Against itself it believes nothing; it answers with a greater counter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from meshnode.effects import CloseLink, Effect, Emit, SendNote, StartTimer
from meshnode.limits import MAX_TWINS_OUTBID
from meshnode.membership import antientropy
from meshnode.membership.config import stretch
from meshnode.membership.member import LIVE, OVERRIDES, Member, MemberTable
from meshnode.membership.messages import (
    Incarnation,
    MemberRecord,
    Rumour,
    leave_bytes,
    pack_id,
    sign_record,
    state_of,
    unpack_id,
)
from meshnode.membership.timers import PersistDue
from meshnode.types import NodeId, NodeState

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.membership.config import MembershipConfig
    from meshnode.membership.dialling import Dialler
    from meshnode.membership.fetching import Fetcher
    from meshnode.membership.health import LocalHealth
    from meshnode.membership.linking import Linking
    from meshnode.membership.outbox import Outbox
    from meshnode.membership.probing import Prober
    from meshnode.membership.pushing import Pusher
    from meshnode.membership.suspicion import Suspicions
    from meshnode.membership.timers import SuspicionExpired


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


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a node that follow what it believes."""

    outbox: Outbox
    pusher: Pusher
    fetcher: Fetcher
    health: LocalHealth
    suspicions: Suspicions
    linking: Linking
    prober: Prober
    dialler: Dialler


@dataclass(slots=True)
class BeliefCounts:
    """What this node came to believe since it started.

    Attributes:
        suspicions: Members that it suspected, by its own probes or by others' word.
        confirmations: Further accusers that counted.
        refuted: Suspicions that the suspect refuted.
        refutations: Accusations against this node that it refuted.
    """

    suspicions: int = 0
    confirmations: int = 0
    refuted: int = 0
    refutations: int = 0


class Beliefs:
    """Changes the table by the rules, and says what follows."""

    def __init__(
        self, table: MemberTable, parts: Parts, signatures: Signatures, config: MembershipConfig
    ) -> None:
        """Work on these parts of one node."""
        self._table = table
        self._outbox = parts.outbox
        self._pusher = parts.pusher
        self._fetcher = parts.fetcher
        self._health = parts.health
        self._suspicions = parts.suspicions
        self._linking = parts.linking
        self._prober = parts.prober
        self._dialler = parts.dialler
        self._signatures = signatures
        self._config = config
        self._twins: set[int] = set()
        self._is_persisting = False
        self.counts: Final = BeliefCounts()

    def __repr__(self) -> str:
        return f"<Beliefs of {self._table.own_id}: {self._table!r}>"

    def forget_old(self, now: float) -> None:
        """Drop members that have been gone for the retention time; the dead are still dialled at times.

        A node that is alone forgets nobody: others have forgotten it too, and nobody would dial.
        """
        if self._table.is_alone:
            return
        for member in self._table.reap(now, self._config.retention_s):
            self._outbox.rumours.drop(pack_id(member.node_id))
            self._outbox.forget(member.node_id)
            if member.state is NodeState.DEAD:
                self._dialler.lose(member.record)

    def evict(self, node_id: NodeId, reason: str, now: float) -> list[Effect]:
        """Forget a member for good and part with it."""
        self._table.remove(node_id)
        self._outbox.rumours.drop(pack_id(node_id))
        self._fetcher.drop(node_id)
        self._dialler.forget_known(node_id)
        effects: list[Effect] = [
            Emit("member.evicted", node_id, reason),
            *self._let_go(node_id, now),
        ]
        if self._table.is_linked(node_id):
            effects.insert(0, CloseLink(node_id, reason))
        return effects

    def _let_go(self, node_id: NodeId, now: float) -> list[Effect]:
        """Expect nothing more of a member, and make up for its links."""
        self._suspicions.end(node_id)
        self._linking.member_gone(node_id)
        self._dialler.member_gone(node_id)
        self._outbox.forget(node_id)
        self._prober.coordinates.forget(node_id)
        effects = [*self._persist_soon(), *self._dialler.fill(now)]
        return effects + self._dialler.dial_everyone(now) if self._table.is_alone else effects

    def persisted(self) -> None:
        """Note that the list on disk is being written: the next change starts a new wait."""
        self._is_persisting = False

    def hear(self, rumour: Rumour, sender: NodeId, now: float) -> list[Effect]:
        """Take a statement about a member's state by the rules of `member.py`."""
        node_id = unpack_id(rumour.subject)
        state = state_of(rumour.state)
        if state is None:
            return []
        member = self._table.get(node_id)
        if state is NodeState.ALIVE and member is not None:
            record = member.record
            if (rumour.epoch, rumour.counter) <= (record.epoch, record.counter):
                return []  # as most rumours: known, and nothing that changes a state
        if member is None:
            return self._hear_of_stranger(node_id, state, rumour, sender, now)
        if rumour.incarnation > member.incarnation:
            is_own = node_id == self._table.own_id
            if is_own and state is NodeState.LEFT and self._has_signed(member.record, rumour):
                return self._outlive_twin(rumour.incarnation, now)
            return self._fetcher.want(rumour, sender, now)
        if rumour.incarnation < member.incarnation:
            return []
        origin = unpack_id(rumour.origin) if len(rumour.origin) == len(rumour.subject) else None
        if state is NodeState.SUSPECT and member.state is NodeState.SUSPECT:
            return self.confirm(member, origin, sender, now)
        if (member.state, state) not in OVERRIDES:
            return []
        if node_id == self._table.own_id:
            return self._refute(state, sender, now)
        if state is NodeState.LEFT and not self._has_signed(member.record, rumour):
            return [Emit("member.dropped", sender, f"a leave of {node_id} that it did not sign")]
        detail = f"told by {sender}"
        return self._believe(member, state, now, detail, origin, rumour.proof, sender)

    def _hear_of_stranger(
        self, node_id: NodeId, state: NodeState, rumour: Rumour, sender: NodeId, now: float
    ) -> list[Effect]:
        """Ask for the record of one that lives; of one that is gone, ask and dial no more."""
        if state in LIVE:
            return self._fetcher.want(rumour, sender, now)
        self._fetcher.give_up(node_id, rumour.incarnation)
        lost = self._dialler.lost.get(node_id)
        if lost is None or state is not NodeState.LEFT or rumour.incarnation < lost.incarnation:
            return []
        if self._has_signed(lost, rumour):
            self._dialler.forget_known(node_id)
        return []

    def _has_signed(self, record: MemberRecord, leave: Rumour) -> bool:
        key = record.public_key
        return self._signatures.verify(key, leave_bytes(key, leave.incarnation), leave.proof)

    def suspect(self, member: Member, now: float) -> list[Effect]:
        """Accuse a member that did not answer this node's own probe."""
        own_id = self._table.own_id
        if member.state is NodeState.SUSPECT:
            return self.confirm(member, own_id, None, now)
        if member.state is not NodeState.ALIVE:
            return []
        detail = "no answer to a probe"
        effects = self._believe(member, NodeState.SUSPECT, now, detail, own_id)
        return effects + self._dialler.call(member.node_id, now)

    def confirm(
        self, member: Member, accuser: NodeId | None, teller: NodeId | None, now: float
    ) -> list[Effect]:
        """Count one more accuser of a suspect, and pass it on: others wait for accusers too."""
        doubt_s = self._health.doubt_s(self._config.probe_interval_s)
        timer = self._suspicions.confirm(member.node_id, accuser, doubt_s, now)
        if timer is None:
            return []
        self.counts.confirmations += 1
        accusation = self._table.rumour(member, accuser)
        self._outbox.rumours.add(accusation)
        return [timer, *self._pusher.add_rumour(accusation, teller, now)]

    def begin_suspicions_anew(self, now: float) -> list[Effect]:
        """Give every suspect its time once more: this node slept, and may have missed that it refuted."""
        return [
            self._start_suspicion(member, None, now)
            for node_id in self._table.live
            if (member := self._table.get(node_id)) is not None
            and member.state is NodeState.SUSPECT
        ]

    def suspicion_again(self, timer: SuspicionExpired, now: float) -> list[Effect]:
        """Give a suspect its time once more whose time is over: this node may be cut off itself."""
        member = self._table.get(timer.node_id)
        if member is None or not self._suspicions.is_due(timer):
            return []
        return [self._start_suspicion(member, None, now)]

    def suspicion_expired(self, timer: SuspicionExpired, now: float) -> list[Effect]:
        """Hold a suspect for dead that did not refute in time."""
        member = self._table.get(timer.node_id)
        if member is None or not self._suspicions.is_due(timer):
            return []
        if self._config.lifeguard and now - timer.due > self._config.late_timer_s:
            # This node slept; a refutation may wait unread. The suspect gets its time once more.
            self._health.change(1)
            return [self._start_suspicion(member, None, now)]
        return self._believe(
            member, NodeState.DEAD, now, "did not refute in time", self._table.own_id
        )

    def _start_suspicion(self, member: Member, accuser: NodeId | None, now: float) -> Effect:
        return self._suspicions.begin(
            member.node_id, member.incarnation, accuser, self._table.size, now
        )

    def _believe(
        self,
        member: Member,
        state: NodeState,
        now: float,
        detail: str,
        origin: NodeId | None,
        proof: bytes = b"",
        teller: NodeId | None = None,
    ) -> list[Effect]:
        """Hold a worse state of a member, tell people and other nodes."""
        node_id = member.node_id
        was_live = member.live
        kept_proof = proof if state is NodeState.LEFT else b""
        changed = self._table.put(member.record, state, now, kept_proof)
        assert changed is not None
        rumour = self._table.rumour(changed, origin)
        self._outbox.rumours.add(rumour)
        effects = self._pusher.add_rumour(rumour, teller, now)
        if state is NodeState.SUSPECT:
            self.counts.suspicions += 1
            timer = self._start_suspicion(changed, origin, now)
            if teller is not None:
                effects += self._prober.second_opinion(node_id, now)
            return [Emit("member.suspect", node_id, detail), timer, *effects]
        if not was_live:  # dead, and now known to have left before: nobody is told twice
            return effects + self._persist_soon()
        return [Emit(f"member.{state}", node_id, detail), *effects, *self._let_go(node_id, now)]

    def accept(
        self, record: MemberRecord, flaw: str | None, sender: NodeId, now: float
    ) -> list[Effect]:
        """Take a record if it is newer than the one held; its subject is alive then.

        Args:
            record: The record.
            flaw: Why it may not be spread, whoever signed it, or None.
            sender: Who sent it.
            now: Monotonic seconds.
        """
        node_id = record.node_id
        held = self._table.get(node_id)
        if held is not None and (held.record is record or record.version <= held.record.version):
            return []
        reason = flaw or self._signatures.verify_record(record)
        if reason is not None:
            return [Emit("member.refused", node_id, f"{reason} (from {sender})")]
        if node_id == self._table.own_id:
            return self._meet_twin(record, now)
        was_asked_for = self._fetcher.came(node_id, record.incarnation)
        if held is not None and held.incarnation == record.incarnation:
            # Two processes with one key; all nodes keep the same one of the two records.
            kept = self._table.put(record, held.state, now, held.proof)
            assert kept is not None
            pushed = self._pusher.add_record(node_id, sender, now)
            if not kept.live:  # whoever has forgotten it must not take it for one that lives
                pushed += self._pusher.add_rumour(self._table.rumour(kept), sender, now)
            detail = "two processes run with this node's key"
            return [Emit("member.conflict", node_id, detail), *pushed]
        member = self._table.put(record, NodeState.ALIVE, now)
        if member is None:
            return [Emit("member.refused", node_id, "the table of members is full")]
        self._suspicions.end(node_id)
        self._linking.member_live(node_id)
        self._outbox.rumours.add(self._table.rumour(member))
        effects = [self._announce(member, held, sender), *self._connect(member, held, now)]
        if was_asked_for:  # others have it: a newcomer does not tell them whom they know
            return effects
        return effects + self._pusher.add_record(node_id, sender, now)

    def accept_gone(
        self, record: MemberRecord, flaw: str | None, sender: NodeId, now: float
    ) -> list[Effect]:
        """Take the record of one that is gone by the word of who sent it; that word is heard next.

        It makes nobody alive. A stranger is not taken at all: this node has forgotten it, or never met
        it, and people would be told of a member that comes and dies in one instant. Of one that is held
        as gone, the later life passed unseen: its record is held, and nobody is told of its end again.

        Args:
            record: The record.
            flaw: Why it may not be spread, whoever signed it, or None.
            sender: Who sent it.
            now: Monotonic seconds.
        """
        node_id = record.node_id
        held = self._table.get(node_id)
        if held is None:
            return []
        if held.live or record.incarnation <= held.incarnation:
            return self.accept(record, flaw, sender, now)
        reason = flaw or self._signatures.verify_record(record)
        if reason is not None:
            return [Emit("member.refused", node_id, f"{reason} (from {sender})")]
        self._fetcher.give_up(node_id, record.incarnation)
        member = self._table.put(record, NodeState.DEAD, now)
        assert member is not None
        # It is passed on as any death: should the member live, it is to hear of it and refute.
        rumour = self._table.rumour(member)
        self._outbox.rumours.add(rumour)
        return [*self._pusher.add_rumour(rumour, sender, now), *self._persist_soon()]

    def _announce(self, member: Member, held: Member | None, sender: NodeId) -> Effect:
        node_id = member.node_id
        if held is None:
            return Emit("member.alive", node_id, f"joined; told by {sender}")
        if not held.live:
            return Emit("member.alive", node_id, f"was {held.state}; told by {sender}")
        if held.state is NodeState.SUSPECT:
            self.counts.refuted += 1
            return Emit("member.refuted", node_id, f"is alive; told by {sender}")
        return Emit("member.updated", node_id, f"incarnation {member.incarnation}")

    def _connect(self, member: Member, held: Member | None, now: float) -> list[Effect]:
        """See to probes, links and the list on disk for a member with a new record."""
        record = member.record
        if held is None or not held.live:
            self._prober.member_joined(member.node_id)
        elif (held.record.epoch, held.record.addresses) == (record.epoch, record.addresses):
            return []
        self._dialler.forget_known(member.node_id)
        return self._dialler.member_moved(member.node_id, now) + self._persist_soon()

    @property
    def is_unwritten(self) -> bool:
        """Whether the list on disk is older than what is believed."""
        return self._is_persisting

    def _persist_soon(self) -> list[Effect]:
        if self._is_persisting:
            return []
        self._is_persisting = True
        delay_s = self._config.persist_delay_s * stretch(self._table.size)
        return [StartTimer(PersistDue(), delay_s)]

    # This node itself.

    def _refute(self, state: NodeState, sender: NodeId, now: float) -> list[Effect]:
        """Answer an accusation with a greater counter, and show it to the teller at once."""
        self._health.change(1)
        self.counts.refutations += 1
        before = self._table.own.record
        effects = self.renew(before, Incarnation(before.epoch, before.counter + 1), now)
        effects.insert(0, Emit("member.refuted", self._table.own_id, f"{sender} held it {state}"))
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
        outbid = Incarnation(record.epoch, record.counter + 1)
        detail = "another process runs with this node's key, or its data folder was restored"
        own = self._table.own
        return [Emit("member.conflict", own.node_id, detail), *self.renew(own.record, outbid, now)]

    def _outlive_twin(self, incarnation: Incarnation, now: float) -> list[Effect]:
        """Outbid the leave of another process with this node's key, which bids no more.

        It signed the leave, so the epoch is no stranger's invention. Every such leave is answered,
        however often the twin was met before: it is over, and others would hold this node for gone.
        """
        outbid = Incarnation(incarnation.epoch, incarnation.counter + 1)
        detail = "another process with this node's key has left; this one is still here"
        own = self._table.own
        return [Emit("member.conflict", own.node_id, detail), *self.renew(own.record, outbid, now)]

    def renew(self, record: MemberRecord, incarnation: Incarnation, now: float) -> list[Effect]:
        """Hold, sign and spread this node's own record with a new incarnation."""
        epoch, counter = incarnation
        renewed = msgspec.structs.replace(record, epoch=epoch, counter=counter)
        own = self._table.put(sign_record(renewed, self._signatures.sign), NodeState.ALIVE, now)
        assert own is not None
        self._outbox.rumours.add(self._table.rumour(own))
        return self._pusher.add_record(own.node_id, None, now)
