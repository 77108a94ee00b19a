"""Identities and admissions of virtual nodes: real keys and real chains, all from one seed."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from meshnode.authority import Authority
from meshnode.state.desired_store import unpack
from meshnode.state.statements import is_statement
from meshnode.trust.admission import admit_joiner
from meshnode.trust.chain import VerifiedMember, found_mesh
from meshnode.trust.identity import Identity
from meshnode.trust.invite import create_invite
from meshnode.trust.reasons import TrustError
from meshnode.trust.roster import Roster

if TYPE_CHECKING:
    from meshnode.trust.invite import Invite
    from meshnode.types import NodeId, Role

_INVITE_TTL_S = 3600.0


class Papers:
    """One node's identity, its admission, and whom it knows to be admitted.

    A node writes its roster down at each change, so a crash loses none of it; everything else that it
    knows of others it makes out anew at each boot, from its desired state (`boot`).

    Attributes:
        identity: The node's key.
        roster: The members that it knows.
        authority: Its checks of what others say.
    """

    def __init__(self, identity: Identity, member: VerifiedMember) -> None:
        """Know nobody but oneself."""
        self.identity = identity
        self._admitted = member
        self._saved: Roster | None = None
        self.boot(None)

    def boot(self, desired: bytes | None) -> None:
        """Begin with what is on disk, as `meshnode.daemon.credentials` does; `desired` may be None."""
        saved = self._saved
        self.roster = Roster(self._admitted.mesh_id)
        self.authority = Authority(self.roster, self._save)
        if saved is not None:
            self.roster.load(saved.to_bytes())
        self.authority.learn(self._admitted)
        for entry in unpack(desired).entries if desired is not None else ():
            if is_statement(entry.key):
                self.authority.take(entry)
        self.authority.settle()

    def _save(self) -> None:
        # Its bytes are made when they are read: a start of n nodes would make n³ chains of them.
        self._saved = self.roster

    @property
    def member(self) -> VerifiedMember:
        """The node as a member, with the chain that it shows."""
        return self.roster.get(self.identity.node_id) or self._admitted

    def __repr__(self) -> str:
        return f"<Papers of {self.identity.node_id[:8]}, {self.member.role}, {self.roster!r}>"


class Admissions:
    """The mesh's trust root and everybody whom it has admitted."""

    def __init__(self, seed: int) -> None:
        """Begin a mesh; the first one admitted founds it."""
        self._seed = seed
        self._founder: Papers | None = None
        self._invites = 0
        self.papers: dict[NodeId, Papers] = {}

    def __repr__(self) -> str:
        return f"<Admissions from seed {self._seed}: {len(self.papers)} members>"

    def admit(self, name: str, role: Role, now_wall_s: float) -> Papers:
        """Make a node's identity and admit it; the founder invites all others."""
        if self._founder is None:
            identity = Identity(self._secret("node", name))
            member = found_mesh(identity, self._secret("root", ""), now_wall_s)
            made = self._founder = self.papers[identity.node_id] = Papers(identity, member)
            return made
        return self.join(
            name, self.invite(self._founder, role, now_wall_s), self._founder, now_wall_s
        )

    def invite(self, inviter: Papers, role: Role, now_wall_s: float, uses: int = 0) -> Invite:
        """Let a member make an invite."""
        self._invites += 1
        return create_invite(
            identity=inviter.identity,
            member=inviter.member,
            role=role,
            ttl_s=_INVITE_TTL_S,
            now_wall_s=now_wall_s,
            seeds=(),
            random_seed=self._secret("invite", str(self._invites)),
            uses=uses,
        )

    def join(self, name: str, invite: Invite, witness: Papers, now_wall_s: float) -> Papers:
        """Make a node's identity and let a member admit it.

        Raises:
            TrustError: if the member refuses it.
        """
        identity = Identity(self._secret("node", name))
        member = admit_joiner(
            witness.roster,
            witness=witness.identity,
            witness_member=witness.member,
            grant=invite.signed_grant,
            subject=identity.public_key,
            invite_proof=invite.prove(identity.public_key),
            now_wall_s=now_wall_s,
        )
        made = self.papers[identity.node_id] = Papers(identity, member)
        return made

    def hello(self, dialler: NodeId, acceptor: NodeId) -> tuple[NodeId, TrustError] | None:
        """Let two nodes judge each other; return whom the other refused, and how, or None."""
        for judge, judged in ((acceptor, dialler), (dialler, acceptor)):
            try:
                self.papers[judge].roster.require_good(self.papers[judged].member)
            except TrustError as error:
                return judged, error
        return None

    def _secret(self, purpose: str, name: str) -> bytes:
        return hashlib.sha256(f"{self._seed}/{purpose}/{name}".encode()).digest()
