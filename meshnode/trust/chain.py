"""Admission chains: how a node shows, to anyone who knows the mesh's id, that it is a member.

A chain is a list of signed records in which every issuer was admitted earlier in the same list,
down from the root key, and whose last record admits the node that shows it::

    root key ── admits ─> founder ── grants ─> invite ┐
                              └───── witnesses ───────┴─ admits ─> joiner ── grants ─> ...

It needs no lookup: a node admitted a second ago at the far end of the mesh is accepted at once by
everyone. `verify_chain` holds each record against these rules:

- the root key matches the mesh id; a record is signed by its issuer for this mesh;
- the root admits without an invite, everyone else only through an invite granted earlier in the chain;
- an inviter is operator or admin and grants at most its own role; an admission gives the grant's role;
- the invite key signed the joiner's public key; nobody admits itself;
- times fit: within the grant's validity, not before the issuer itself was admitted.

A node admitted twice has the highest role that it was given, in whatever order the records stand;
taking a role away is a revocation, which is not part of a chain.

Expiry is judged by the witness's clock. A dishonest member that holds an expired invite can
back-date an admission to any time since its own; what keeps an invite from use for good is its
revocation, not its expiry.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from meshnode.errors import ProtocolError
from meshnode.limits import MAX_CHAIN_BYTES, MAX_CHAIN_RECORDS, MAX_CLOCK_SKEW_S
from meshnode.trust.identity import Identity
from meshnode.trust.reasons import Reason, TrustError
from meshnode.trust.records import (
    Admission,
    InviteGrant,
    MeshId,
    PublicKey,
    SignedRecord,
    is_invite_proof,
    is_signed_by_issuer,
    mesh_id_of,
    read_record,
    rfc3339,
    sign_record,
)
from meshnode.types import NodeId, Role, node_id_of
from meshnode.wire.codec import Codec, Message

if TYPE_CHECKING:
    from collections.abc import Iterable


class Chain(Message, frozen=True, tag=67):
    """The bytes of a chain: the root's public key and the records, each after those it rests on."""

    root_public_key: PublicKey
    records: Annotated[tuple[SignedRecord, ...], msgspec.Meta(max_length=MAX_CHAIN_RECORDS)]


_CHAINS = Codec(Chain)


@dataclass(frozen=True, slots=True)
class VerifiedMember:
    """A member whose admission chain was verified. Only `verify_chain` makes one.

    Attributes:
        node_id: The member's id.
        public_key: Its Ed25519 public key.
        role: The highest role that the chain gives it.
        mesh_id: The mesh it belongs to.
        issued_at_s: Wall time of its admission, by the witness's clock.
        invite_key: Public key of the invite it used; empty for the founder.
        records: The chain's records.
        chain: The chain's bytes, as this version encodes them.
    """

    node_id: NodeId
    public_key: bytes
    role: Role
    mesh_id: MeshId
    issued_at_s: int
    invite_key: bytes
    root_public_key: bytes = field(repr=False)
    records: tuple[SignedRecord, ...] = field(repr=False)
    chain: bytes = field(repr=False)


def found_mesh(founder: Identity, root_seed: bytes, now_wall_s: float) -> VerifiedMember:
    """Make a mesh: its root key admits the founder as admin.

    Args:
        founder: The founding node.
        root_seed: 32 random bytes, the root's secret; nothing later needs it in order to admit.
        now_wall_s: Wall time.
    """
    root = Identity(root_seed)
    mesh_id = mesh_id_of(root.public_key)
    admission = Admission(founder.public_key, Role.ADMIN, int(now_wall_s), root.public_key)
    signed = sign_record(root, mesh_id, admission)
    return verify_chain(_encode(root.public_key, [signed]), mesh_id)


def admit(
    *,
    witness: Identity,
    witness_member: VerifiedMember,
    inviter: VerifiedMember,
    grant: SignedRecord,
    subject: bytes,
    invite_proof: bytes,
    now_wall_s: float,
) -> VerifiedMember:
    """Admit a joiner through an invite and return it with its new chain.

    Args:
        witness: The admitting node, which has checked that the joiner holds `subject`.
        witness_member: The same node as a member.
        inviter: The member that made the invite.
        grant: The invite's grant as the joiner showed it.
        subject: The joiner's public key.
        invite_proof: The invite key's signature over it.
        now_wall_s: The witness's wall time; the invite must be valid then.

    Raises:
        TrustError: if any rule of this module would be broken; nobody was admitted.
    """
    mesh_id = witness_member.mesh_id
    record = read_record(grant)
    if not isinstance(record, InviteGrant):
        raise TrustError(Reason.CHAIN, "what the joiner shows is not an invite")
    # Checked before the witness signs anything; `verify_chain` below then holds the whole chain
    # against the same rules that every other member will apply.
    check_time_of_use(record, now_wall_s)
    if not is_signed_by_issuer(grant, record, mesh_id):
        raise TrustError(Reason.SIGNATURE, "the invite was not signed by the member it names")
    if not is_invite_proof(record.invite_key, mesh_id, subject, invite_proof):
        raise TrustError(Reason.SIGNATURE, "the joiner could not prove that it holds the invite")
    admission = Admission(
        subject, record.role, int(now_wall_s), witness.public_key, record.invite_key, invite_proof
    )
    signed = sign_record(witness, mesh_id, admission)
    # A dict keeps the first of equal records: inviter and witness share their oldest ancestors.
    records = dict.fromkeys((*inviter.records, *witness_member.records, grant, signed))
    if len(records) > MAX_CHAIN_RECORDS:
        raise TrustError(Reason.CHAIN, _TOO_LONG)
    chain = _encode(witness_member.root_public_key, records)
    return verify_chain(chain, mesh_id, subject=subject)


_TOO_LONG: Final = (
    f"the admission chain has more than {MAX_CHAIN_RECORDS} records; let the founder, or a member "
    "that the founder invited, make the invite"
)


def check_time_of_use(grant: InviteGrant, at_wall_s: float) -> None:
    """Check that an invite may be used at a wall time.

    Raises:
        TrustError: `EXPIRED` or `CLOCK`, with the times.
    """
    if at_wall_s > grant.expires_at_s:
        raise TrustError(
            Reason.EXPIRED,
            f"the invite expired at {rfc3339(grant.expires_at_s)}, and it is {rfc3339(at_wall_s)}; "
            "ask for a new one: meshnode invite",
        )
    if at_wall_s < grant.issued_at_s - MAX_CLOCK_SKEW_S:
        raise TrustError(
            Reason.CLOCK,
            f"the invite was made at {rfc3339(grant.issued_at_s)}, but used at "
            f"{rfc3339(at_wall_s)}; set the clocks of both nodes",
        )


def verify_chain(chain: bytes, mesh_id: MeshId, *, subject: bytes | None = None) -> VerifiedMember:
    """Check a chain against a mesh's id and return the member that it admits.

    Args:
        chain: The chain's bytes, from anywhere.
        mesh_id: The mesh that it must come down from.
        subject: The public key that it must admit, or None for any; checked before any signature.

    Raises:
        TrustError: says which rule is broken.
    """
    decoded = _decode(chain)
    if mesh_id_of(decoded.root_public_key) != mesh_id:
        raise TrustError(Reason.WRONG_MESH, "the admission is for another mesh")
    records = [read_record(signed) for signed in decoded.records]
    last = records[-1] if records else None
    if not isinstance(last, Admission):
        raise TrustError(Reason.CHAIN, "the chain does not end in an admission")
    if subject is not None and last.subject != subject:
        raise TrustError(Reason.NOT_A_MEMBER, "the peer shows the admission of another node")
    ledger = _Ledger(mesh_id, decoded.root_public_key)
    for record, signed in zip(records, decoded.records, strict=True):
        if not is_signed_by_issuer(signed, record, mesh_id):
            raise TrustError(Reason.SIGNATURE, "a record of the chain is not signed by its issuer")
        ledger.add(record)
    return VerifiedMember(
        node_id=node_id_of(last.subject),
        public_key=last.subject,
        role=ledger.role(last.subject),
        mesh_id=mesh_id,
        issued_at_s=last.issued_at_s,
        invite_key=last.invite_key,
        root_public_key=decoded.root_public_key,
        records=decoded.records,
        chain=_encode(decoded.root_public_key, decoded.records),
    )


class _Ledger:
    """What the records read so far establish, given that their signatures hold."""

    def __init__(self, mesh_id: MeshId, root_public_key: bytes) -> None:
        self._mesh_id = mesh_id
        self._root = root_public_key
        self._admitted: dict[bytes, list[Admission]] = {}
        self._grants: dict[bytes, InviteGrant] = {}

    def role(self, public_key: bytes) -> Role:
        roles = [admission.role for admission in self._admitted[public_key]]
        return next(role for role in roles if all(role.allows(other) for other in roles))

    def add(self, record: Admission | InviteGrant) -> None:
        if isinstance(record, InviteGrant):
            self._add_grant(record)
            return
        if record.issuer == self._root:
            if record.invite_key or record.invite_proof:
                raise TrustError(Reason.CHAIN, "the root admits without an invite")
        else:
            self._check_admission(record)
        self._admitted.setdefault(record.subject, []).append(record)

    def _add_grant(self, grant: InviteGrant) -> None:
        self._check_issuer(grant.issuer, grant.issued_at_s)
        role = self.role(grant.issuer)
        if not role.allows(Role.OPERATOR):
            raise TrustError(
                Reason.ROLE, "the invite was made by a plain member, which may not invite"
            )
        if not role.allows(grant.role):
            raise TrustError(
                Reason.ROLE, f"the invite was made by an {role} and gives {grant.role}"
            )
        if self._grants.setdefault(grant.invite_key, grant) != grant:
            raise TrustError(Reason.CHAIN, "two invites of the chain share one key")

    def _check_admission(self, admission: Admission) -> None:
        self._check_issuer(admission.issuer, admission.issued_at_s)
        grant = self._grants.get(admission.invite_key)
        if grant is None:
            raise TrustError(Reason.CHAIN, "a member was admitted without an invite")
        if admission.role is not grant.role:
            raise TrustError(
                Reason.ROLE,
                f"a member was admitted as {admission.role} with an invite as {grant.role}",
            )
        if admission.subject == admission.issuer:
            raise TrustError(Reason.CHAIN, "a member admitted itself")
        check_time_of_use(grant, admission.issued_at_s)
        if not is_invite_proof(
            grant.invite_key, self._mesh_id, admission.subject, admission.invite_proof
        ):
            raise TrustError(Reason.SIGNATURE, "a member was admitted without proof of its invite")

    def _check_issuer(self, issuer: bytes, issued_at_s: int) -> None:
        admissions = self._admitted.get(issuer)
        if admissions is None:
            raise TrustError(
                Reason.CHAIN, "a record was issued by a node that the chain does not admit"
            )
        since_s = min(admission.issued_at_s for admission in admissions)
        if issued_at_s < since_s - MAX_CLOCK_SKEW_S:
            raise TrustError(
                Reason.CLOCK,
                f"a record of {rfc3339(issued_at_s)} was issued by a node that was admitted later, at "
                f"{rfc3339(since_s)}",
            )


def _encode(root_public_key: bytes, records: Iterable[SignedRecord]) -> bytes:
    return _CHAINS.encode(Chain(root_public_key, tuple(records)))


def _decode(data: bytes) -> Chain:
    if not data:
        raise TrustError(
            Reason.NOT_A_MEMBER, "the node is not a member of this mesh; join with an invite"
        )
    if len(data) > MAX_CHAIN_BYTES:
        raise TrustError(Reason.CHAIN, f"the admission chain exceeds {MAX_CHAIN_BYTES} bytes")
    try:
        chain: Chain | None = _CHAINS.decode(data)
    except ProtocolError as error:
        raise TrustError(Reason.CHAIN, f"the admission chain is damaged: {error}") from error
    if chain is None:
        raise TrustError(Reason.CHAIN, "what should be an admission chain is another message")
    return chain
