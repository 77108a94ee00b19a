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
- a member hands its place over to a new key, which has its role and agreed; only an admin promotes;
- times fit: within the grant's validity, not before the issuer itself was admitted.

A node admitted twice has the highest role that it was given, in whatever order the records stand.

What a chain cannot say is what has been taken away since: evictions, lower roles and how many devices
an invite has admitted are judged by `meshnode.trust.standing`, for which a verified chain keeps its
*steps*: how each key in it came to be a member.

Expiry is judged by the witness's clock. A dishonest member that holds an expired invite can
back-date an admission to any time since its own; what keeps an invite from use for good is the
eviction of the two.
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
    Promotion,
    PublicKey,
    Record,
    SignedRecord,
    Succession,
    is_invite_proof,
    is_signed_by_issuer,
    is_successor_proof,
    mesh_id_of,
    prove_successor,
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
class Step:
    """How a key came to be a member, or to a role.

    Attributes:
        kind: `Admission`, `Succession` or `Promotion`.
        subject: The member.
        by: Who admitted it (the root's id at a founding), whom it succeeds, or who promoted it.
        role: The role that it was given.
        at_s: Wall time, by the clock of `by`.
        grant: The invite of an admission; None at a founding and otherwise.
    """

    kind: type[Admission | Succession | Promotion]
    subject: NodeId
    by: NodeId
    role: Role
    at_s: int
    grant: InviteGrant | None = None


@dataclass(frozen=True, slots=True)
class VerifiedMember:
    """A member whose admission chain was verified. Only `verify_chain` makes one.

    Attributes:
        node_id: The member's id.
        public_key: Its Ed25519 public key.
        role: The highest role that the chain gives it; from a roster, the one that it has now.
        mesh_id: The mesh it belongs to.
        issued_at_s: Wall time of its admission, by the witness's clock.
        invite_key: Public key of the invite it used; empty for the founder and a successor.
        records: The chain's records.
        steps: How each key in it came to be a member, in the chain's order.
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
    steps: tuple[Step, ...] = field(repr=False)
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
    return _joined(witness_member, (*inviter.records, *witness_member.records, grant), signed)


def promote(
    *,
    admin: Identity,
    admin_member: VerifiedMember,
    member: VerifiedMember,
    role: Role,
    now_wall_s: float,
) -> VerifiedMember:
    """Give a member a higher role and return it with its new chain.

    Args:
        admin: The promoting node.
        admin_member: The same node as a member.
        member: The member, which may be the same as before in all but its chain and role.
        role: Its new role, above its present one.
        now_wall_s: The admin's wall time.

    Raises:
        TrustError: if any rule of this module would be broken.
    """
    promotion = Promotion(member.public_key, role, int(now_wall_s), admin.public_key)
    signed = sign_record(admin, admin_member.mesh_id, promotion)
    return _joined(admin_member, (*member.records, *admin_member.records), signed)


def succeed(
    *, former: Identity, member: VerifiedMember, successor: Identity, now_wall_s: float
) -> VerifiedMember:
    """Hand a membership over to a new key; return the new member, with the same role.

    Args:
        former: The key that is replaced.
        member: The same as a member.
        successor: The new key.
        now_wall_s: Wall time.

    Raises:
        TrustError: if the chain has no room for one more record.
    """
    mesh_id = member.mesh_id
    proof = prove_successor(successor, mesh_id, former.public_key)
    succession = Succession(successor.public_key, int(now_wall_s), former.public_key, proof)
    return _joined(member, member.records, sign_record(former, mesh_id, succession))


def _joined(
    member: VerifiedMember, rests_on: Iterable[SignedRecord], last: SignedRecord
) -> VerifiedMember:
    """Make a chain of records and verify it, as every other member will."""
    # A dict keeps the first of equal records: two members share their oldest ancestors.
    records = dict.fromkeys((*rests_on, last))
    if len(records) > MAX_CHAIN_RECORDS:
        raise TrustError(Reason.CHAIN, _TOO_LONG)
    return verify_chain(_encode(member.root_public_key, records), member.mesh_id)


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
    if last is None or isinstance(last, InviteGrant):
        raise TrustError(Reason.CHAIN, "the chain does not end in an admission")
    if subject is not None and last.subject != subject:
        raise TrustError(Reason.NOT_A_MEMBER, "the peer shows the admission of another node")
    ledger = _Ledger(mesh_id, decoded.root_public_key)
    for record, signed in zip(records, decoded.records, strict=True):
        if not is_signed_by_issuer(signed, record, mesh_id):
            raise TrustError(Reason.SIGNATURE, "a record of the chain is not signed by its issuer")
        ledger.add(record)
    admission = ledger.admission(last.subject)
    return VerifiedMember(
        node_id=admission.subject,
        public_key=last.subject,
        role=ledger.role(last.subject),
        mesh_id=mesh_id,
        issued_at_s=admission.at_s,
        invite_key=admission.grant.invite_key if admission.grant else b"",
        root_public_key=decoded.root_public_key,
        records=decoded.records,
        steps=tuple(ledger.steps),
        chain=_encode(decoded.root_public_key, decoded.records),
    )


class _Ledger:
    """What the records read so far establish, given that their signatures hold."""

    def __init__(self, mesh_id: MeshId, root_public_key: bytes) -> None:
        self.steps: list[Step] = []
        self._mesh_id = mesh_id
        self._root = root_public_key
        self._by_key: dict[bytes, list[Step]] = {}
        self._grants: dict[bytes, InviteGrant] = {}

    def role(self, public_key: bytes) -> Role:
        return highest(step.role for step in self._by_key[public_key])

    def admission(self, public_key: bytes) -> Step:
        """Return the last step by which a key became a member."""
        steps = reversed(self._by_key[public_key])
        return next(step for step in steps if step.kind is not Promotion)

    def add(self, record: Record) -> None:
        match record:
            case InviteGrant():
                self._add_grant(record)
            case Admission():
                self._take(record, record.role, self._grant_of(record))
            case Succession():
                self._check_succession(record)
                self._take(record, self.role(record.issuer))
            case Promotion():
                self._check_promotion(record)
                self._take(record, record.role)

    def _take(
        self,
        record: Admission | Succession | Promotion,
        role: Role,
        grant: InviteGrant | None = None,
    ) -> None:
        subject, by = node_id_of(record.subject), node_id_of(record.issuer)
        step = Step(type(record), subject, by, role, record.issued_at_s, grant)
        self.steps.append(step)
        self._by_key.setdefault(record.subject, []).append(step)

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

    def _grant_of(self, admission: Admission) -> InviteGrant | None:
        """Check an admission and return its invite; None at a founding."""
        if admission.issuer == self._root:
            if admission.invite_key or admission.invite_proof:
                raise TrustError(Reason.CHAIN, "the root admits without an invite")
            return None
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
        return grant

    def _check_succession(self, succession: Succession) -> None:
        self._check_issuer(succession.issuer, succession.issued_at_s)
        if succession.subject in self._by_key:
            raise TrustError(Reason.CHAIN, "a member handed its place over to a member")
        if not is_successor_proof(
            succession.subject, self._mesh_id, succession.issuer, succession.proof
        ):
            raise TrustError(Reason.SIGNATURE, "a place was handed over without the new key's word")

    def _check_promotion(self, promotion: Promotion) -> None:
        self._check_issuer(promotion.issuer, promotion.issued_at_s)
        if promotion.subject not in self._by_key:
            raise TrustError(Reason.CHAIN, "a node was promoted that the chain does not admit")
        if self.role(promotion.issuer) is not Role.ADMIN:
            raise TrustError(Reason.ROLE, "a member was promoted by a node that is no admin")

    def _check_issuer(self, issuer: bytes, issued_at_s: int) -> None:
        steps = self._by_key.get(issuer)
        if steps is None:
            raise TrustError(
                Reason.CHAIN, "a record was issued by a node that the chain does not admit"
            )
        since_s = min(step.at_s for step in steps)
        if issued_at_s < since_s - MAX_CLOCK_SKEW_S:
            raise TrustError(
                Reason.CLOCK,
                f"a record of {rfc3339(issued_at_s)} was issued by a node that was admitted later, at "
                f"{rfc3339(since_s)}",
            )


def highest(roles: Iterable[Role]) -> Role:
    """Return the highest of some roles; that of a plain member if there are none."""
    return max(roles, key=list(Role).index, default=Role.MEMBER)


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
