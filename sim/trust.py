"""Identities and admissions of virtual nodes: real keys and real chains, all from one seed."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from meshnode.authority import Authority
from meshnode.trust.chain import VerifiedMember, admit, found_mesh
from meshnode.trust.identity import Identity
from meshnode.trust.invite import create_invite
from meshnode.trust.roster import Roster

if TYPE_CHECKING:
    from meshnode.types import NodeId, Role

_INVITE_TTL_S = 3600.0


class Papers:
    """One node's identity, its admission, and whom it knows to be admitted.

    A node writes its roster down at each change, so a crash loses none of it: it outlives boots.

    Attributes:
        identity: The node's key.
        member: The node as a member.
        roster: The members that it knows.
        authority: Its checks of what others say.
    """

    def __init__(self, identity: Identity, member: VerifiedMember) -> None:
        """Know nobody but oneself."""
        self.identity = identity
        self.member = member
        self.roster = Roster(member.mesh_id)
        self.roster.add(member.chain)
        self.authority = Authority(self.roster, lambda: None)

    def __repr__(self) -> str:
        return f"<Papers of {self.identity.node_id[:8]}, {self.member.role}, {self.roster!r}>"


class Admissions:
    """The mesh's trust root and everybody whom it has admitted."""

    def __init__(self, seed: int) -> None:
        """Begin a mesh; the first one admitted founds it."""
        self._seed = seed
        self._founder: Papers | None = None
        self.papers: dict[NodeId, Papers] = {}

    def __repr__(self) -> str:
        return f"<Admissions from seed {self._seed}: {len(self.papers)} members>"

    def admit(self, name: str, role: Role, now_wall_s: float) -> Papers:
        """Make a node's identity and admit it; the founder invites all others."""
        identity = Identity(self._secret("node", name))
        if self._founder is None:
            member = found_mesh(identity, self._secret("root", ""), now_wall_s)
            made = self._founder = Papers(identity, member)
        else:
            made = Papers(identity, self._invite(self._founder, identity, role, now_wall_s))
        self.papers[identity.node_id] = made
        return made

    def _invite(
        self, inviter: Papers, joiner: Identity, role: Role, now_wall_s: float
    ) -> VerifiedMember:
        invite = create_invite(
            identity=inviter.identity,
            member=inviter.member,
            role=role,
            ttl_s=_INVITE_TTL_S,
            now_wall_s=now_wall_s,
            seeds=(),
            random_seed=self._secret("invite", joiner.node_id),
        )
        return admit(
            witness=inviter.identity,
            witness_member=inviter.member,
            inviter=inviter.member,
            grant=invite.signed_grant,
            subject=joiner.public_key,
            invite_proof=invite.prove(joiner.public_key),
            now_wall_s=now_wall_s,
        )

    def _secret(self, purpose: str, name: str) -> bytes:
        return hashlib.sha256(f"{self._seed}/{purpose}/{name}".encode()).digest()
