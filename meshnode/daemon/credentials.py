"""Who this node is to others: its identity, its admission, and whom it knows to be admitted."""

from __future__ import annotations

import logging
import secrets
from typing import TYPE_CHECKING

import msgspec

from meshnode.authority import Authority
from meshnode.datafolder import DataFolder, MeshFile, Successor
from meshnode.errors import ConfigError
from meshnode.limits import MAX_SEEDS
from meshnode.options import is_name
from meshnode.state.desired import PERSIST_KEY as DESIRED_KEY
from meshnode.state.desired_store import unpack
from meshnode.state.statements import is_statement
from meshnode.trust.chain import VerifiedMember, found_mesh, succeed, verify_chain
from meshnode.trust.hello import NONCE_BYTES, AcceptorHello, DiallerHello
from meshnode.trust.identity import SEED_BYTES, Identity
from meshnode.trust.invite import Invite, create_invite
from meshnode.trust.pairing_hello import ApprovingHello, AskingHello
from meshnode.trust.reasons import TrustError
from meshnode.trust.records import InviteGrant, MeshId, read_record
from meshnode.trust.roster import Roster
from meshnode.types import Address, NodeId, Role
from meshnode.wire.frames import WIRE_VERSIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshnode.clock import Clock
    from meshnode.net.tls import ServerTls
    from meshnode.trust.pairing import Asking

log = logging.getLogger(__name__)

ROSTER_KEY = "roster"


class Credentials:
    """This node's identity and its place in a mesh.

    Attributes:
        identity: The node's key.
        boot: This start's random number: tells this process from an earlier one with the same key.
        invite: The invite it is joining with, until the mesh has admitted it.
        asking: What it asks with instead, likewise.
        asked_at: Where it asks.
        seeds: Where invites said that the mesh is, the latest first.
        dropped: What was not taken over from the saved roster, as sentences.
        random_bytes: Draws so many bytes that nobody can guess, for keys and nonces.
    """

    def __init__(
        self,
        folder: DataFolder,
        clock: Clock,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """Load the identity, and the admission if there is one.

        Raises:
            ConfigError: if a file of the data folder is damaged or not readable.
        """
        self._folder = folder
        self._clock = clock
        self.random_bytes = random_bytes
        self.identity: Identity = folder.identity()
        self.boot = int.from_bytes(random_bytes(8), "big")
        self.invite: Invite | None = None
        self.asking: Asking | None = None
        self.asked_at: tuple[Address, ...] = ()
        self._member: VerifiedMember | None = None
        self._roster: Roster | None = None
        self._authority: Authority | None = None
        self._is_roster_saved = True
        self.dropped: Sequence[str] = ()
        self.seeds: tuple[Address, ...] = ()
        stored = folder.mesh()
        if stored is not None:
            self._take(self._verified(stored))
            self._hand_over()
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
        """This node as a member of its mesh, with the role that it has now."""
        assert self._member is not None
        return self.roster.get(self._member.node_id) or self._member

    @property
    def region(self) -> str:
        """Where whoever invited this node said that it is; empty if nobody did, or it is no name."""
        grants = (read_record(signed) for signed in self.member.records)
        return next(
            (
                record.region
                for record in grants
                if isinstance(record, InviteGrant)
                and record.invite_key == self.member.invite_key
                and is_name(record.region)
            ),
            "",
        )

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
        root_seed = self.random_bytes(32)
        member = found_mesh(self.identity, root_seed, self._clock.wall_s())
        self._folder.save_mesh(MeshFile(member.mesh_id, member.chain, root_seed))
        self._take(member)

    def admitted(self, member: VerifiedMember) -> None:
        """Keep the admission that a member of the mesh has just given this node.

        Raises:
            ConfigError: if it cannot be written; this node is no member then.
        """
        assert self.invite is not None or self.asking is not None
        self.seeds = self.asked_at if self.invite is None else self.invite.seeds
        self._folder.save_mesh(MeshFile(member.mesh_id, member.chain, seeds=self.seeds))
        self.invite = self.asking = None
        self._take(member)

    def remember_seeds(self, seeds: Sequence[Address]) -> None:
        """Look for the mesh at these addresses too, from now on and first.

        Raises:
            ConfigError: if that cannot be written; nothing has changed then.
        """
        kept = tuple(dict.fromkeys((*seeds, *self.seeds)))[:MAX_SEEDS]
        self._folder.save_mesh(msgspec.structs.replace(self._stored_mesh(), seeds=kept))
        self.seeds = kept

    def dial_hello(self, certificate_hash: bytes, expect: NodeId | None) -> DiallerHello:
        """Begin a hello as the side that dials."""
        if self.asking is not None:
            return AskingHello(
                identity=self.identity,
                asking=self.asking,
                boot=self.boot,
                nonce=self.random_bytes(NONCE_BYTES),
                pairing_nonce=self.random_bytes(NONCE_BYTES),
                certificate_hash=certificate_hash,
                versions=WIRE_VERSIONS,
                expect=expect,
            )
        return DiallerHello(
            identity=self.identity,
            credential=self.invite or self.member,
            boot=self.boot,
            nonce=self.random_bytes(NONCE_BYTES),
            certificate_hash=certificate_hash,
            versions=WIRE_VERSIONS,
            expect=expect,
            roster=self._roster,
        )

    def accept_hello(self, tls: ServerTls) -> Callable[[], AcceptorHello]:
        """Return what begins a hello as the side that was dialled."""

        def begin() -> AcceptorHello:
            return ApprovingHello(
                identity=self.identity,
                member=self.member,
                roster=self.roster,
                boot=self.boot,
                nonce=self.random_bytes(NONCE_BYTES),
                certificate_hash=tls.certificate_hash,
                versions=WIRE_VERSIONS,
                wall_s=self._clock.wall_s(),
            )

        return begin

    def create_invite(
        self,
        ttl_s: float,
        seeds: Sequence[Address],
        role: Role = Role.OPERATOR,
        uses: int = 0,
        region: str = "",
    ) -> Invite:
        """Make an invite.

        Args:
            ttl_s: How long it may be used, in seconds.
            seeds: Where the mesh is.
            role: What the joiner will be.
            uses: How many devices it admits; 0 for any number.
            region: Where the joiner says it is, if its owner names no other; may be empty.

        Raises:
            Forbidden: if this node may not invite, or not to that role.
            InvalidRequest: if a value is out of range.
        """
        return create_invite(
            identity=self.identity,
            member=self.member,
            role=role,
            ttl_s=ttl_s,
            now_wall_s=self._clock.wall_s(),
            seeds=seeds,
            random_seed=self.random_bytes(32),
            uses=uses,
            region=region,
        )

    def make_successor(self) -> VerifiedMember:
        """Make a new key and its admission by this one, and write both down beside the present ones.

        Raises:
            ConfigError: if that cannot be written; nothing has changed then.
        """
        seed = self.random_bytes(SEED_BYTES)
        try:
            member = succeed(
                former=self.identity,
                member=self.member,
                successor=Identity(seed),
                now_wall_s=self._clock.wall_s(),
            )
        except TrustError as error:
            raise ConfigError(
                f"this device cannot take another key: {error}; let it leave with `meshnode leave "
                "--forget` and join again with a new invite"
            ) from error
        stored = self._stored_mesh()
        self._folder.save_successor(
            Successor(seed, msgspec.structs.replace(stored, chain=member.chain))
        )
        return member

    def succeed(self) -> None:
        """Let the key of `make_successor` be this device's from the next start on.

        Call it once the draft of `Drafts.rotation` is committed. If the process dies before, the next
        start does it, as soon as it finds that the present key has handed over.

        Raises:
            ConfigError: if that cannot be written.
        """
        self._folder.succeed()

    @property
    def has_root(self) -> bool:
        """Whether the seed of the mesh's root key is on this device."""
        stored = self._folder.mesh()
        return stored is not None and bool(stored.root_seed)

    def drop_root(self) -> None:
        """Forget the seed of the mesh's root key, where this device has it: the mesh is sealed.

        Raises:
            ConfigError: if that cannot be written; it is kept then.
        """
        self._folder.save_mesh(msgspec.structs.replace(self._stored_mesh(), root_seed=b""))

    def _stored_mesh(self) -> MeshFile:
        stored = self._folder.mesh()
        assert stored is not None
        return stored

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
        self._member, self._roster = member, None
        roster = Roster(member.mesh_id)
        self._authority = Authority(roster, self._save_roster)
        saved = self._folder.state(ROSTER_KEY)
        dropped = [] if saved is None else roster.load(saved)
        self._authority.learn(member)
        # Whoever is out of the mesh must not be taken for a member in the time until the node, which
        # has all of the desired state, is made.
        stored = self._folder.state(DESIRED_KEY)
        for entry in unpack(stored).entries if stored is not None else ():
            if is_statement(entry.key):
                self._authority.take(entry)
        dropped += [flaw.sentence for _, flaw in self._authority.settle()]
        self._roster, self.dropped = roster, dropped

    def _hand_over(self) -> None:
        """Become the successor if this key has handed over to it and the process died then."""
        successor = self._folder.successor()
        if successor is None or self.authority.why_out(self.node_id) is None:
            return
        heir = Identity(successor.seed).node_id
        if self.authority.why_out(heir) is None and heir in self.roster:
            self._folder.succeed()
            self.identity = self._folder.identity()
            self._take(self._verified(self._stored_mesh()))

    def _save_roster(self) -> None:
        """Write the roster, once it is read; where the disk refuses, go on: links bring every chain again."""
        if self._roster is None:
            return
        try:
            self._folder.save_state(ROSTER_KEY, self._roster.to_bytes())
        except ConfigError as error:
            if self._is_roster_saved:
                log.error("the list of members is not saved: %s", error)
            self._is_roster_saved = False
        else:
            self._is_roster_saved = True
