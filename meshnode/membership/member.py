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
    STATE_CODES,
    DigestEntry,
    Incarnation,
    MemberRecord,
    Rumour,
    pack_id,
)
from meshnode.types import NodeId, NodeState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_A, _S, _D, _L = STATE_CODES

OVERRIDES: Final[frozenset[tuple[NodeState, NodeState]]] = frozenset(
    {(_A, _S), (_A, _D), (_A, _L), (_S, _D), (_S, _L), (_D, _L)}
)
"""(held, heard) pairs of states of one incarnation in which what is heard wins."""

LIVE: Final = (NodeState.ALIVE, NodeState.SUSPECT)
"""States in which a member is probed, told rumours and linked: a suspect must hear of it."""


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

    It keeps order of insertion, so that equal histories iterate equally.
    """

    def __init__(self, own: MemberRecord, now: float, *, limit: int = MAX_MEMBERS) -> None:
        """Begin with this node alone."""
        self.own_id: Final = own.node_id
        self._limit = limit
        self._members: dict[NodeId, Member] = {}
        self._linked: dict[NodeId, None] = {}
        self._live: tuple[NodeId, ...] | None = None
        self._root: bytes | None = None
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
        if self._live is None:
            self._live = tuple(
                node_id
                for node_id, member in self._members.items()
                if member.live and node_id != self.own_id
            )
        return self._live

    @property
    def size(self) -> int:
        """Members that are alive or suspect, this node included: the n of all formulas."""
        return len(self.live) + 1

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
        node_id = record.node_id
        before = self._members.get(node_id)
        if before is None and len(self._members) >= self._limit and not self._make_room():
            return None
        since = before.since if before is not None and before.state == state else now
        member = Member(node_id, record, state, since, node_id in self._linked, proof)
        self._members[node_id] = member
        self._changed()
        return member

    def reap(self, now: float, retention_s: float) -> list[NodeId]:
        """Forget members that have been dead or gone for the retention time, and name them."""
        gone = [
            node_id
            for node_id, member in self._members.items()
            if not member.live and now - member.since >= retention_s
        ]
        for node_id in gone:
            del self._members[node_id]
        return gone

    def root(self) -> bytes:
        """Return a hash of what this node believes about live members.

        The dead and the departed are left out: nodes forget them at different times, and a node
        that joins never learns of them.
        """
        if self._root is None:
            view = hashlib.sha256()
            for entry in self.entries():
                if STATE_CODES[entry.state] in LIVE:
                    view.update(msgspec.msgpack.encode(entry))
            self._root = view.digest()[:16]
        return self._root

    def entries(self) -> list[DigestEntry]:
        """Return all members as digest entries, in the order of their ids."""
        entries = [_entry(member) for member in self._members.values()]
        entries.sort(key=lambda entry: entry.subject)
        return entries

    def rumour(self, member: Member, origin: NodeId | None = None) -> Rumour:
        """Return what this node believes about a member, to be told."""
        return Rumour(
            pack_id(member.node_id),
            member.record.epoch,
            member.record.counter,
            STATE_CODES.index(member.state),
            b"" if origin is None else pack_id(origin),
            member.proof,
        )

    def _make_room(self) -> bool:
        gone: Iterable[Member] = (member for member in self._members.values() if not member.live)
        oldest = min(gone, key=lambda member: member.since, default=None)
        if oldest is None:
            return False
        del self._members[oldest.node_id]
        return True

    def _changed(self) -> None:
        self._live = None
        self._root = None


def _entry(member: Member) -> DigestEntry:
    record = member.record
    state = STATE_CODES.index(member.state)
    return DigestEntry(pack_id(member.node_id), record.epoch, record.counter, record.boot, state)
