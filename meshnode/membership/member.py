r"""The table of members, and which statement about a member overrides which.

How it works as a whole. A member's *record* is what it says about itself, signed; a *rumour* is
what somebody says about its state, unsigned (but for a leave). Both name an incarnation, and the
incarnation decides first:

- A statement about an **older** incarnation than the record held changes nothing, ever. That is
  why a late "alive" cannot resurrect a node that has left.
- A statement about a **newer** incarnation than the record held is only a reason to ask for the
  record. Nothing but the subject's signature can lift an incarnation, so nobody can be accused in
  a life or a claim that it never made, and a forged incarnation of 2^63 goes nowhere.
- A newer *record* makes its subject alive, whatever it was before: SWIM's "alive overrides suspect
  and dead with a greater incarnation", and a restart (greater epoch) after death or leave.
- A record that comes **with word that its subject is gone** makes nobody alive. Of a stranger neither is
  taken: it was forgotten here, or never met, and would come and die in one instant.
- Within the **same** incarnation the worse statement wins, as in SWIM (section 4.2), and `left`,
  which the subject itself signed, is final::

      held \ heard    alive   suspect   dead   left
      alive            -       yes      yes    yes
      suspect          -        -       yes    yes
      dead             -        -        -     yes
      left             -        -        -      -

An accused node that lives raises its counter and signs a new record: that is the only way back.
Within one incarnation states only climb and across incarnations the greater wins, so any two nodes
that exchange what they know agree, in whatever order they heard it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import msgspec

from meshnode.limits import MAX_MEMBERS
from meshnode.membership.messages import (
    BUCKETS,
    CODE_OF,
    STATE_CODES,
    SUM_BYTES,
    DigestEntry,
    Incarnation,
    MemberRecord,
    Rumour,
    node_id_of_key,
    pack_id,
)
from meshnode.types import NodeId, NodeState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_A, _S, _D, _L = STATE_CODES

OVERRIDES: Final[frozenset[tuple[NodeState, NodeState]]] = frozenset(
    {(_A, _S), (_A, _D), (_A, _L), (_S, _D), (_S, _L), (_D, _L)}
)
"""(held, heard) pairs of states of one incarnation in which what is heard wins."""

LIVE: Final = (NodeState.ALIVE, NodeState.SUSPECT)
"""States in which a member is probed, told rumours and linked: a suspect must hear of it."""

LAST_ID: Final = b"\xff" * 20
"""No NodeId is greater."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member as this node sees it; replaced, never changed, so readers may keep it.

    Attributes:
        node_id: Its NodeId, the hash of the record's key.
        record: What it says about itself.
        state: What this node believes.
        since: When the state began, in monotonic seconds of this node.
        linked: Whether a link to it is up; never for this node itself.
        proof: Of a member that left: its signature, to pass on.
    """

    node_id: NodeId
    record: MemberRecord
    state: NodeState
    since: float
    linked: bool = False
    proof: bytes = b""

    @property
    def incarnation(self) -> Incarnation:
        """The incarnation of its record."""
        return self.record.incarnation

    @property
    def live(self) -> bool:
        """Whether it is alive or suspect."""
        return self.state in LIVE


class MemberTable:
    """Members by NodeId, this node included, at most `MAX_MEMBERS`.

    What everybody asks for (who is live, the hash of the view) is kept up with each change, so that
    a change costs the same in a mesh of thousands. For anti-entropy the ids are divided into
    `BUCKETS` ranges, each with a sum of its entries' hashes: sums are changed by one entry without
    the others, and do not depend on the order. It keeps order of insertion, so that equal histories
    iterate equally.
    """

    def __init__(self, own: MemberRecord, now: float, *, limit: int = MAX_MEMBERS) -> None:
        """Begin with this node alone."""
        self.own_id: Final = own.node_id
        self._limit = limit
        self._members: dict[NodeId, Member] = {}
        self._linked: dict[NodeId, None] = {}
        self._live: dict[NodeId, None] = {}  # others
        self._live_now: tuple[NodeId, ...] | None = None
        self._gone: dict[NodeId, None] = {}  # in the order in which they went
        self._buckets: list[dict[NodeId, None]] = [{} for _ in range(BUCKETS)]
        self._sums = [0] * BUCKETS
        self.view: Final[Mapping[NodeId, Member]] = MappingProxyType(self._members)
        self.put(own, NodeState.ALIVE, now)

    def __repr__(self) -> str:
        counts = dict.fromkeys(STATE_CODES, 0)
        for member in self._members.values():
            counts[member.state] += 1
        return f"<MemberTable {', '.join(f'{count} {state}' for state, count in counts.items())}>"

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def get(self, node_id: NodeId) -> Member | None:
        """Return a member, or None if it is unknown."""
        return self._members.get(node_id)

    @property
    def own(self) -> Member:
        """This node."""
        return self._members[self.own_id]

    @property
    def live(self) -> tuple[NodeId, ...]:
        """The other members that are alive or suspect."""
        if self._live_now is None:
            self._live_now = tuple(self._live)
        return self._live_now

    @property
    def size(self) -> int:
        """Members that are alive or suspect, this node included: the n of all formulas."""
        return len(self._live) + 1

    @property
    def is_alone(self) -> bool:
        """Whether no other member is alive or suspect."""
        return not self._live

    def in_state(self, state: NodeState) -> list[NodeId]:
        """Return the members that are dead, or those that left."""
        return [node_id for node_id in self._gone if self._members[node_id].state is state]

    def dead_since(self, time: float) -> list[NodeId]:
        """Return the members that died at this monotonic second or later."""
        found: list[NodeId] = []
        for node_id in reversed(self._gone):
            member = self._members[node_id]
            if member.since < time:
                break
            if member.state is NodeState.DEAD:
                found.append(node_id)
        return found

    @property
    def linked(self) -> tuple[NodeId, ...]:
        """Nodes to which a link is up, members or not yet."""
        return tuple(self._linked)

    def is_linked(self, node_id: NodeId) -> bool:
        """Whether a link to this node is up."""
        return node_id in self._linked

    def set_linked(self, node_id: NodeId, linked: bool) -> None:
        """Note that a link came up or went down."""
        if linked:
            self._linked[node_id] = None
        else:
            self._linked.pop(node_id, None)
        member = self._members.get(node_id)
        if member is not None:
            self._members[node_id] = replace(member, linked=linked)

    def put(
        self, record: MemberRecord, state: NodeState, now: float, proof: bytes = b""
    ) -> Member | None:
        """Hold a record and a state; `since` moves only if the state does.

        Returns:
            The member, or None if the table is full of live members. A full table forgets the
            member that has been dead or gone for longest.
        """
        node_id = node_id_of_key(record.public_key)
        before = self._members.get(node_id)
        if before is None and len(self._members) >= self._limit and not self._make_room():
            return None
        since = before.since if before is not None and before.state == state else now
        member = Member(node_id, record, state, since, node_id in self._linked, proof)
        self._members[node_id] = member
        bucket = _bucket(node_id)
        self._buckets[bucket][node_id] = None
        self._add_to_sum(bucket, before, -1)
        self._add_to_sum(bucket, member, 1)
        self._file(member, before)
        return member

    def remove(self, node_id: NodeId) -> None:
        """Forget a member, but for this node itself."""
        member = self._members.pop(node_id, None)
        if member is None:
            return
        bucket = _bucket(node_id)
        del self._buckets[bucket][node_id]
        self._add_to_sum(bucket, member, -1)
        self._gone.pop(node_id, None)
        if self._live.pop(node_id, self) is None:
            self._live_now = None

    def reap(self, now: float, retention_s: float) -> list[Member]:
        """Forget members that have been dead or gone for the retention time, and return them."""
        gone: list[Member] = []
        for node_id in self._gone:
            member = self._members[node_id]
            if now - member.since < retention_s:
                break
            gone.append(member)
        for member in gone:
            self.remove(member.node_id)
        return gone

    def root(self) -> bytes:
        """Return a hash of what this node believes about live members.

        The dead and the departed are left out: nodes forget them at different times, and a node
        that joins never learns of them.
        """
        return hashlib.sha256(b"".join(self.bucket_sums())).digest()[:16]

    def bucket_sums(self) -> list[bytes]:
        """Return the hash of each range of ids, likewise."""
        return [each.to_bytes(SUM_BYTES, "big") for each in self._sums]

    def entries(self, after: bytes = b"", upto: bytes = LAST_ID) -> list[DigestEntry]:
        """Return the members with `after < id <= upto` as digest entries, in the order of their ids."""
        first = after[0] * BUCKETS // 256 if after else 0
        buckets = self._buckets[first : upto[0] * BUCKETS // 256 + 1]
        entries = [_entry(self._members[node_id]) for bucket in buckets for node_id in bucket]
        entries = [entry for entry in entries if after < entry.subject <= upto]
        entries.sort(key=lambda entry: entry.subject)
        return entries

    def rumour(self, member: Member, origin: NodeId | None = None) -> Rumour:
        """Return what this node believes about a member, to be told."""
        return Rumour(
            pack_id(member.node_id),
            member.record.epoch,
            member.record.counter,
            CODE_OF[member.state],
            b"" if origin is None else pack_id(origin),
            member.proof,
        )

    def _add_to_sum(self, bucket: int, member: Member | None, sign: int) -> None:
        if member is not None and member.live:
            digest = hashlib.blake2b(
                msgspec.msgpack.encode(_entry(member)), digest_size=SUM_BYTES
            ).digest()
            changed = self._sums[bucket] + sign * int.from_bytes(digest, "big")
            self._sums[bucket] = changed & (1 << 8 * SUM_BYTES) - 1

    def _file(self, member: Member, before: Member | None) -> None:
        """Put a member among the live or those that are gone."""
        node_id = member.node_id
        if node_id == self.own_id:
            return
        if member.live:
            self._gone.pop(node_id, None)
            if node_id not in self._live:
                self._live[node_id] = None
                self._live_now = None
            return
        if node_id in self._live:
            del self._live[node_id]
            self._live_now = None
        if before is None or before.state is not member.state:
            self._gone.pop(node_id, None)
            self._gone[node_id] = None

    def _make_room(self) -> bool:
        oldest = next(iter(self._gone), None)
        if oldest is None:
            return False
        self.remove(oldest)
        return True


def bucket_range(bucket: int) -> tuple[bytes, bytes]:
    """Return after which id a bucket begins and with which it ends."""
    width = 256 // BUCKETS
    after = bytes([bucket * width - 1]) + LAST_ID[1:] if bucket else b""
    return after, bytes([(bucket + 1) * width - 1]) + LAST_ID[1:]


def _bucket(node_id: NodeId) -> int:
    return pack_id(node_id)[0] * BUCKETS // 256


def _entry(member: Member) -> DigestEntry:
    record = member.record
    return DigestEntry(
        pack_id(member.node_id), record.epoch, record.counter, record.boot, CODE_OF[member.state]
    )
