"""The members that this node knows, each with the admission chain that proves it.

A roster only ever holds verified chains of one mesh that are in good standing: whatever came over
the network or from the disk passes `verify_chain` and `Standing.flaw` on its way in, and a new
standing (`Roster.apply`) drops whoever it excludes. Everything that asks "who is this key, and what
may it do" asks the roster, so that a revocation has one place to take effect.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from meshnode.errors import ProtocolError
from meshnode.limits import MAX_MEMBERS, MAX_MEMBERS_OF_OPERATORS, MAX_MEMBERS_PER_OPERATOR
from meshnode.trust.chain import VerifiedMember, verify_chain
from meshnode.trust.reasons import Reason, TrustError
from meshnode.trust.shares import Shares, rests_on
from meshnode.trust.standing import Standing
from meshnode.types import NodeId, Role
from meshnode.wire.codec import Codec, Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from meshnode.trust.records import MeshId
    from meshnode.trust.standing import Flaw


class _Snapshot(Message, frozen=True, tag=68):
    """A roster on disk."""

    chains: tuple[bytes, ...]


_SNAPSHOTS = Codec(_Snapshot)


class Roster:
    """Verified members of one mesh, up to `MAX_MEMBERS` as in every table of members.

    Attributes:
        mesh_id: The mesh.
        standing: What is known of evictions, roles and uses of invites.
        evidence: Returns bytes that show a refused member why it is, for `TrustError.evidence`.
    """

    def __init__(
        self,
        mesh_id: MeshId,
        *,
        max_members: int = MAX_MEMBERS,
        max_per_operator: int = MAX_MEMBERS_PER_OPERATOR,
    ) -> None:
        """Know nobody.

        Args:
            mesh_id: The mesh.
            max_members: How many it holds.
            max_per_operator: How many of them may rest on one key that is no admin's.
        """
        self.mesh_id = mesh_id
        self.standing = Standing()
        self.evidence: Callable[[VerifiedMember], bytes] = lambda _: b""
        self._max_members = max_members
        self._shares = Shares(max_per_operator, MAX_MEMBERS_OF_OPERATORS)
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
        """Verify a chain and keep the member that it admits, if it is in good standing.

        Of two different chains for one node every roster keeps the same: that of the higher role,
        then of the earlier admission, then the shorter, then the first in byte order.

        Returns:
            The member as the roster now holds it, with the role that it has now.

        Raises:
            TrustError: if the chain does not hold or count, or the roster is full; nothing was changed.
        """
        return self.take(verify_chain(chain, self.mesh_id))

    def take(self, member: VerifiedMember) -> VerifiedMember:
        """Keep a member of this mesh whose chain was verified; else as `add`.

        Raises:
            TrustError: if the chain does not count, or there is no room; nothing was changed.
        """
        member = self.require_good(member)
        known = self._members.get(member.node_id)
        if known is None:
            self._require_room(member)
            self._shares.count(rests_on(member))
        else:
            member = min(known, member, key=_preference)
        self._members[member.node_id] = member
        return member

    def _require_room(self, member: VerifiedMember) -> None:
        if self.is_full:
            raise TrustError(
                Reason.FULL,
                f"the mesh has {self._max_members} members already, the most it can have",
            )
        full = self._shares.why_none(rests_on(member))
        if full is not None:
            raise TrustError(Reason.FULL, f"{full}; join with an invite of an admin's node")

    def require_good(self, member: VerifiedMember) -> VerifiedMember:
        """Return a verified member with the role that it has now, if it is in good standing.

        Raises:
            TrustError: if it is not, with what shows it why.
        """
        flaw = self.standing.flaw(member)
        if flaw is not None:
            raise TrustError(flaw.reason, flaw.sentence, evidence=self.evidence(member))
        role = self.standing.role(member)
        return member if role is member.role else replace(member, role=role)

    def apply(self, standing: Standing) -> list[tuple[VerifiedMember, Flaw]]:
        """Judge every member anew; drop those whom the standing excludes, and return them with why."""
        self.standing = standing
        dropped = []
        for node_id, member in tuple(self._members.items()):
            flaw = standing.flaw(member)
            if flaw is not None:
                del self._members[node_id]
                dropped.append((member, flaw))
                continue
            role = standing.role(member)
            if role is not member.role:
                self._members[node_id] = replace(member, role=role)
        if dropped:
            self._shares.clear()
            for member in self._members.values():
                self._shares.count(rests_on(member))
        return dropped

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

    def load(self, data: bytes) -> list[str]:
        """Add the members of a roster from the disk, verifying every chain again.

        Returns:
            A sentence for each thing that was dropped because it does not hold, or does not count
            any more. Members that are missing come back from any other member.
        """
        try:
            snapshot: _Snapshot | None = _SNAPSHOTS.decode(data)
        except ProtocolError as error:
            return [f"the saved roster is damaged and was dropped: {error}"]
        if snapshot is None:
            return ["the saved roster is another kind of message and was dropped"]
        dropped = []
        for index, chain in enumerate(snapshot.chains):
            try:
                self.add(chain)
            except TrustError as error:
                dropped.append(f"entry {index} of the saved roster was dropped: {error}")
        return dropped


_RANKS = {Role.ADMIN: 0, Role.OPERATOR: 1, Role.MEMBER: 2}


def _preference(member: VerifiedMember) -> tuple[int, int, int, bytes]:
    return _RANKS[member.role], member.issued_at_s, len(member.chain), member.chain
