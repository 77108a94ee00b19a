"""The members that this node knows, each with the admission chain that proves it.

A roster only ever holds verified chains of one mesh: whatever came over the network or from the
disk passes `verify_chain` on its way in. Everything that asks "who is this key, and what may it
do" asks the roster, so that a revocation has one place to take effect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.errors import ProtocolError
from meshnode.limits import MAX_MEMBERS
from meshnode.trust.chain import VerifiedMember, verify_chain
from meshnode.trust.reasons import Reason, TrustError
from meshnode.types import NodeId, Role
from meshnode.wire.codec import Codec, Message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshnode.trust.records import MeshId


class _Snapshot(Message, frozen=True, tag=68):
    """A roster on disk."""

    chains: tuple[bytes, ...]


_SNAPSHOTS = Codec(_Snapshot)


class Roster:
    """Verified members of one mesh, up to `MAX_MEMBERS` as in every table of members."""

    def __init__(self, mesh_id: MeshId, *, max_members: int = MAX_MEMBERS) -> None:
        self.mesh_id = mesh_id
        self._max_members = max_members
        self._members: dict[NodeId, VerifiedMember] = {}

    def __repr__(self) -> str:
        return f"<Roster of {self.mesh_id}: {len(self)} members>"

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[VerifiedMember]:
        """Yield the members, in the order in which they were first added."""
        return iter(tuple(self._members.values()))

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._members

    @property
    def is_full(self) -> bool:
        """Whether no further member fits."""
        return len(self) >= self._max_members

    def add(self, chain: bytes) -> VerifiedMember:
        """Verify a chain and keep the member that it admits.

        Of two different chains for one node every roster keeps the same: that of the higher role,
        then of the earlier admission, then the shorter, then the first in byte order.

        Returns:
            The member as the roster now holds it.

        Raises:
            TrustError: if the chain does not hold or the roster is full; nothing was changed.
        """
        member = verify_chain(chain, self.mesh_id)
        known = self._members.get(member.node_id)
        if known is None and self.is_full:
            raise TrustError(
                Reason.FULL,
                f"the mesh has {self._max_members} members already, the most it can have",
            )
        if known is not None:
            member = min(known, member, key=_preference)
        self._members[member.node_id] = member
        return member

    def get(self, node_id: NodeId) -> VerifiedMember | None:
        """Return a member, or None if this node knows none of that id."""
        return self._members.get(node_id)

    def public_key(self, node_id: NodeId) -> bytes | None:
        """Return a member's Ed25519 public key."""
        member = self._members.get(node_id)
        return member.public_key if member else None

    def role(self, node_id: NodeId) -> Role | None:
        """Return a member's role."""
        member = self._members.get(node_id)
        return member.role if member else None

    def chain(self, node_id: NodeId) -> bytes | None:
        """Return a member's chain, for others to verify."""
        member = self._members.get(node_id)
        return member.chain if member else None

    def to_bytes(self) -> bytes:
        """Return the roster for the disk."""
        return _SNAPSHOTS.encode(_Snapshot(tuple(member.chain for member in self)))

    @classmethod
    def from_bytes(cls, data: bytes, mesh_id: MeshId) -> tuple[Roster, list[str]]:
        """Read a roster from the disk, verifying every chain again.

        Returns:
            The roster, and a sentence for each thing that was dropped because it does not hold.
            Members that are missing come back from any other member.
        """
        roster = cls(mesh_id)
        try:
            snapshot: _Snapshot | None = _SNAPSHOTS.decode(data)
        except ProtocolError as error:
            return roster, [f"the saved roster is damaged and was dropped: {error}"]
        if snapshot is None:
            return roster, ["the saved roster is another kind of message and was dropped"]
        dropped = []
        for index, chain in enumerate(snapshot.chains):
            try:
                roster.add(chain)
            except TrustError as error:
                dropped.append(f"entry {index} of the saved roster was dropped: {error}")
        return roster, dropped


_RANKS = {Role.ADMIN: 0, Role.OPERATOR: 1, Role.MEMBER: 2}


def _preference(member: VerifiedMember) -> tuple[int, int, int, bytes]:
    return _RANKS[member.role], member.issued_at_s, len(member.chain), member.chain
