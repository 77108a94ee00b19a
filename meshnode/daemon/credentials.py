"""Who this node is to others: its identity, its admission, and whom it knows to be admitted."""

from __future__ import annotations

import logging
import os
import secrets
from typing import TYPE_CHECKING

import msgspec

from meshnode.authority import Authority
from meshnode.datafolder import DataFolder, MeshFile
from meshnode.errors import ConfigError
from meshnode.limits import MAX_SEEDS
from meshnode.trust.chain import VerifiedMember, found_mesh, verify_chain
from meshnode.trust.hello import NONCE_BYTES, AcceptorHello, DiallerHello
from meshnode.trust.invite import Invite, create_invite
from meshnode.trust.reasons import TrustError
from meshnode.trust.records import MeshId
from meshnode.trust.roster import Roster
from meshnode.types import Address, NodeId, Role
from meshnode.wire.frames import WIRE_VERSIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshnode.clock import Clock
    from meshnode.net.tls import ServerTls
    from meshnode.trust.identity import Identity

log = logging.getLogger(__name__)

ROSTER_KEY = "roster"


class Credentials:
    """This node's identity and its place in a mesh.

    Attributes:
        identity: The node's key.
        boot: This start's random number: tells this process from an earlier one with the same key.
        invite: The invite it is joining with, until the mesh has admitted it.
        seeds: Where invites said that the mesh is, the latest first.
        dropped: What was not taken over from the saved roster, as sentences.
    """

    def __init__(self, folder: DataFolder, clock: Clock) -> None:
        """Load the identity, and the admission if there is one.

        Raises:
            ConfigError: if a file of the data folder is damaged or not readable.
        """
        self._folder = folder
        self._clock = clock
        self.identity: Identity = folder.identity()
        self.boot = int.from_bytes(os.urandom(8), "big")
        self.invite: Invite | None = None
        self._member: VerifiedMember | None = None
        self._roster: Roster | None = None
        self._authority: Authority | None = None
        self._is_roster_saved = True
        self.dropped: Sequence[str] = ()
        self.seeds: tuple[Address, ...] = ()
        stored = folder.mesh()
        if stored is not None:
            self._take(self._verified(stored))
            self.seeds = tuple(Address(*seed) for seed in stored.seeds)

    def __repr__(self) -> str:
        return f"<Credentials of {self.identity.node_id[:8]} in mesh {self.mesh_id}>"

    @property
    def node_id(self) -> NodeId:
        """This node's id."""
        return self.identity.node_id

    @property
    def mesh_id(self) -> MeshId | None:
        """The mesh that this node is a member of, or None."""
        return self._member.mesh_id if self._member else None

    @property
    def member(self) -> VerifiedMember:
        """This node as a member of its mesh."""
        assert self._member is not None
        return self._member

    @property
    def roster(self) -> Roster:
        """The members that this node knows."""
        assert self._roster is not None
        return self._roster

    @property
    def authority(self) -> Authority:
        """Checks of what other nodes say."""
        assert self._authority is not None
        return self._authority

    def found(self) -> None:
        """Make a new mesh, with this node as its admin.

        Raises:
            ConfigError: if it cannot be written; there is no mesh then.
        """
        root_seed = secrets.token_bytes(32)
        member = found_mesh(self.identity, root_seed, self._clock.wall_s())
        self._folder.save_mesh(MeshFile(member.mesh_id, member.chain, root_seed))
        self._take(member)

    def admitted(self, member: VerifiedMember) -> None:
        """Keep the admission that a member of the mesh has just given this node.

        Raises:
            ConfigError: if it cannot be written; this node is no member then.
        """
        assert self.invite is not None
        self.seeds = self.invite.seeds
        self._folder.save_mesh(MeshFile(member.mesh_id, member.chain, seeds=self.seeds))
        self.invite = None
        self._take(member)

    def remember_seeds(self, seeds: Sequence[Address]) -> None:
        """Look for the mesh at these addresses too, from now on and first.

        Raises:
            ConfigError: if that cannot be written; nothing has changed then.
        """
        kept = tuple(dict.fromkeys((*seeds, *self.seeds)))[:MAX_SEEDS]
        stored = self._folder.mesh()
        assert stored is not None
        self._folder.save_mesh(msgspec.structs.replace(stored, seeds=kept))
        self.seeds = kept

    def dial_hello(self, certificate_hash: bytes, expect: NodeId | None) -> DiallerHello:
        """Begin a hello as the side that dials."""
        return DiallerHello(
            identity=self.identity,
            credential=self.invite or self.member,
            boot=self.boot,
            nonce=os.urandom(NONCE_BYTES),
            certificate_hash=certificate_hash,
            versions=WIRE_VERSIONS,
            expect=expect,
        )

    def accept_hello(self, tls: ServerTls) -> Callable[[], AcceptorHello]:
        """Return what begins a hello as the side that was dialled."""

        def begin() -> AcceptorHello:
            return AcceptorHello(
                identity=self.identity,
                member=self.member,
                roster=self.roster,
                boot=self.boot,
                nonce=os.urandom(NONCE_BYTES),
                certificate_hash=tls.certificate_hash,
                versions=WIRE_VERSIONS,
                wall_s=self._clock.wall_s(),
            )

        return begin

    def create_invite(self, ttl_s: float, seeds: Sequence[Address]) -> Invite:
        """Make an invite for an operator.

        Raises:
            Forbidden: if this node may not invite.
            InvalidRequest: if the time is out of range.
        """
        return create_invite(
            identity=self.identity,
            member=self.member,
            role=Role.OPERATOR,
            ttl_s=ttl_s,
            now_wall_s=self._clock.wall_s(),
            seeds=seeds,
            random_seed=secrets.token_bytes(32),
        )

    def _verified(self, stored: MeshFile) -> VerifiedMember:
        try:
            member = verify_chain(stored.chain, MeshId(stored.mesh_id))
        except TrustError as error:
            raise ConfigError(
                f"{self._folder.path / 'mesh'} is damaged ({error}); remove it and join again with "
                "a new invite"
            ) from error
        if member.node_id != self.node_id:
            raise ConfigError(
                f"{self._folder.path} mixes the identity of one node with the admission of "
                "another; remove the folder and join again with a new invite"
            )
        return member

    def _take(self, member: VerifiedMember) -> None:
        self._member = member
        saved = self._folder.state(ROSTER_KEY)
        if saved is None:
            self._roster = Roster(member.mesh_id)
        else:
            self._roster, self.dropped = Roster.from_bytes(saved, member.mesh_id)
        self._authority = Authority(self._roster, self._save_roster)
        self._authority.learn(member)

    def _save_roster(self) -> None:
        """Write the roster; where the disk refuses, go on: links bring every chain again."""
        try:
            self._folder.save_state(ROSTER_KEY, self.roster.to_bytes())
        except ConfigError as error:
            if self._is_roster_saved:
                log.error("the list of members is not saved: %s", error)
            self._is_roster_saved = False
        else:
            self._is_roster_saved = True
