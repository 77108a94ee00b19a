from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import msgspec
import pytest

from meshnode.errors import Forbidden
from meshnode.limits import MAX_CHAIN_BYTES, MAX_CHAIN_RECORDS, MAX_CLOCK_SKEW_S
from meshnode.trust.chain import Chain, VerifiedMember, admit, found_mesh, verify_chain
from meshnode.trust.identity import Identity
from meshnode.trust.invite import create_invite
from meshnode.trust.reasons import Reason, TrustError
from meshnode.trust.records import (
    Admission,
    InviteGrant,
    Record,
    SignedRecord,
    mesh_id_of,
    prove_invite,
    rfc3339,
    sign_record,
)
from meshnode.types import Role

NOW_S = 1_800_000_000
Admit = Callable[..., VerifiedMember]


def key(name: str) -> Identity:
    return Identity(hashlib.sha256(name.encode()).digest())


ROOT = key("root")
FOUNDER = key("founder")
JOINER = key("joiner")
INVITE = key("invite")
STRANGER = key("stranger")
MESH = mesh_id_of(ROOT.public_key)


def encode(records: Iterable[SignedRecord], root: Identity = ROOT) -> bytes:
    return msgspec.msgpack.encode(Chain(root.public_key, tuple(records)))


def founding(subject: Identity = FOUNDER, role: Role = Role.ADMIN) -> Admission:
    return Admission(subject.public_key, role, NOW_S, ROOT.public_key)


def granting(
    inviter: Identity = FOUNDER,
    role: Role = Role.OPERATOR,
    *,
    invite: Identity = INVITE,
    at_s: int = NOW_S,
    ttl_s: int = 3600,
) -> InviteGrant:
    return InviteGrant(invite.public_key, role, at_s, at_s + ttl_s, inviter.public_key)


def joining(
    subject: Identity = JOINER,
    witness: Identity = FOUNDER,
    role: Role = Role.OPERATOR,
    *,
    invite: Identity = INVITE,
    at_s: int = NOW_S,
    proof: bytes | None = None,
) -> Admission:
    if proof is None:
        proof = prove_invite(invite, MESH, subject.public_key)
    return Admission(subject.public_key, role, at_s, witness.public_key, invite.public_key, proof)


SIGNERS = {signer.public_key: signer for signer in (ROOT, FOUNDER, JOINER, STRANGER, key("third"))}


def signed(record: Record) -> SignedRecord:
    return sign_record(SIGNERS[record.issuer], MESH, record)


def chain_of(*records: Record) -> bytes:
    return encode(signed(record) for record in records)


def refused(chain: bytes) -> TrustError:
    with pytest.raises(TrustError) as caught:
        verify_chain(chain, MESH)
    return caught.value


def test_a_founder_is_admitted_by_the_root_as_admin() -> None:
    member = found_mesh(FOUNDER, hashlib.sha256(b"root").digest(), NOW_S + 0.7)
    assert member.mesh_id == MESH
    assert (member.node_id, member.role) == (FOUNDER.node_id, Role.ADMIN)
    assert member.issued_at_s == NOW_S
    assert member.invite_key == b""
    assert member == verify_chain(member.chain, MESH, subject=FOUNDER.public_key)


def test_a_joiner_is_admitted_through_an_invite() -> None:
    member = verify_chain(chain_of(founding(), granting(), joining()), MESH)
    assert (member.node_id, member.public_key) == (JOINER.node_id, JOINER.public_key)
    assert member.role is Role.OPERATOR
    assert member.invite_key == INVITE.public_key


def test_any_member_may_witness_and_shared_ancestors_appear_once(
    founder: Identity, founded: VerifiedMember, admit_through: Admit
) -> None:
    """B, invited by the founder as a plain member, admits C, who was invited by operator A."""
    a, b, c = key("a"), key("b"), key("c")
    member_a = admit_through(a, (founder, founded))
    member_b = admit_through(b, (founder, founded), Role.MEMBER)
    member_c = admit_through(c, (a, member_a), Role.OPERATOR, witness=(b, member_b))
    assert member_c.role is Role.OPERATOR
    # founder; grant and admission of each of a, b and c
    assert len(member_c.records) == 7
    assert len(set(member_c.records)) == 7


def test_changing_any_byte_of_a_chain_breaks_it() -> None:
    chain = chain_of(founding(), granting(), joining())
    for position in range(len(chain)):
        for flip in (0x01, 0x80):
            changed = bytearray(chain)
            changed[position] ^= flip
            refused(bytes(changed))


def test_changing_any_byte_of_any_record_breaks_it() -> None:
    records = [signed(record) for record in (founding(), granting(), joining())]
    for index, record in enumerate(records):
        for position in range(len(record.payload)):
            payload = bytearray(record.payload)
            payload[position] ^= 0x04
            changed = SignedRecord(bytes(payload), record.signature)
            refused(encode([*records[:index], changed, *records[index + 1 :]]))
        for position in range(len(record.signature)):
            signature = bytearray(record.signature)
            signature[position] ^= 0x04
            changed = SignedRecord(record.payload, bytes(signature))
            error = refused(encode([*records[:index], changed, *records[index + 1 :]]))
            assert error.reason is Reason.SIGNATURE


def test_any_truncation_or_addition_breaks_a_chain() -> None:
    chain = chain_of(founding(), granting(), joining())
    for length in range(len(chain)):
        refused(chain[:length])
    refused(chain + b"\x00")


THIRD = key("third")
CASES: dict[str, tuple[tuple[Record, ...], Reason, str]] = {
    "the root admits through an invite": (
        (msgspec.structs.replace(founding(), invite_key=INVITE.public_key),),
        Reason.CHAIN,
        "root admits without",
    ),
    "the root admits with a proof": (
        (msgspec.structs.replace(founding(), invite_proof=b"x"),),
        Reason.CHAIN,
        "root admits without",
    ),
    "no invite": ((founding(), joining()), Reason.CHAIN, "without an invite"),
    "the invite comes after its use": (
        (founding(), joining(), granting(), joining(THIRD)),
        Reason.CHAIN,
        "without an invite",
    ),
    "an invite by a plain member": (
        (founding(role=Role.MEMBER), granting(role=Role.MEMBER), joining(role=Role.MEMBER)),
        Reason.ROLE,
        "plain member",
    ),
    "an operator makes an admin": (
        (founding(role=Role.OPERATOR), granting(role=Role.ADMIN), joining(role=Role.ADMIN)),
        Reason.ROLE,
        "made by an operator and gives admin",
    ),
    "more than the invite gives": (
        (founding(), granting(role=Role.MEMBER), joining(role=Role.OPERATOR)),
        Reason.ROLE,
        "admitted as operator with an invite as member",
    ),
    "less than the invite gives": (
        (founding(), granting(role=Role.OPERATOR), joining(role=Role.MEMBER)),
        Reason.ROLE,
        "admitted as member with an invite as operator",
    ),
    "a joiner witnesses its own promotion": (
        (
            founding(),
            granting(role=Role.MEMBER),
            joining(role=Role.MEMBER),
            granting(invite=THIRD),
            joining(witness=JOINER, invite=THIRD),
        ),
        Reason.CHAIN,
        "admitted itself",
    ),
    "no proof": ((founding(), granting(), joining(proof=b"")), Reason.SIGNATURE, "without proof"),
    "another subject's proof": (
        (
            founding(),
            granting(),
            joining(proof=prove_invite(INVITE, MESH, STRANGER.public_key)),
        ),
        Reason.SIGNATURE,
        "without proof",
    ),
    "another mesh's proof": (
        (
            founding(),
            granting(),
            joining(proof=prove_invite(INVITE, mesh_id_of(b""), JOINER.public_key)),
        ),
        Reason.SIGNATURE,
        "without proof",
    ),
    "a proof by the joiner's own key": (
        (founding(), granting(), joining(proof=prove_invite(JOINER, MESH, JOINER.public_key))),
        Reason.SIGNATURE,
        "without proof",
    ),
    "a stranger witnesses": (
        (founding(), granting(), joining(witness=STRANGER)),
        Reason.CHAIN,
        "does not admit",
    ),
    "a stranger invites": (
        (founding(), granting(STRANGER), joining()),
        Reason.CHAIN,
        "does not admit",
    ),
    "the root invites": ((founding(), granting(ROOT), joining()), Reason.CHAIN, "does not admit"),
    "two invites share a key": (
        (founding(), granting(role=Role.MEMBER), granting(), joining()),
        Reason.CHAIN,
        "share one key",
    ),
    "back-dated before the invite": (
        (founding(), granting(at_s=NOW_S + 1000), joining(at_s=NOW_S + 999 - MAX_CLOCK_SKEW_S)),
        Reason.CLOCK,
        "set the clocks",
    ),
    "used after it expired": (
        (founding(), granting(ttl_s=60), joining(at_s=NOW_S + 61)),
        Reason.EXPIRED,
        "2027-01-15T08:01:00Z",
    ),
    "witnessed before the witness was admitted": (
        (
            founding(),
            granting(ttl_s=9000),
            joining(at_s=NOW_S + 5000),
            joining(THIRD, JOINER, at_s=NOW_S + 10),
        ),
        Reason.CLOCK,
        "admitted later",
    ),
    "invited before the inviter was admitted": (
        (
            founding(),
            granting(ttl_s=9000),
            joining(at_s=NOW_S + 5000),
            granting(JOINER, invite=THIRD),
            joining(STRANGER, invite=THIRD, at_s=NOW_S + 10),
        ),
        Reason.CLOCK,
        "admitted later",
    ),
    "nothing": ((), Reason.CHAIN, "end in an admission"),
    "an invite is no member": ((founding(), granting()), Reason.CHAIN, "end in an admission"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_chain_that_breaks_a_rule_is_refused(name: str) -> None:
    records, reason, sentence = CASES[name]
    error = refused(chain_of(*records))
    assert error.reason is reason
    assert sentence in str(error)
    assert not error.by_peer


def test_times_may_differ_by_the_skew_of_honest_clocks() -> None:
    at_s = NOW_S - MAX_CLOCK_SKEW_S
    verify_chain(chain_of(founding(), granting(at_s=NOW_S), joining(at_s=at_s)), MESH)
    verify_chain(chain_of(founding(), granting(ttl_s=60), joining(at_s=NOW_S + 60)), MESH)


def test_a_record_signed_by_another_than_its_issuer_is_refused() -> None:
    forged = sign_record(STRANGER, MESH, founding(STRANGER))
    assert refused(encode([forged])).reason is Reason.SIGNATURE


def test_a_record_of_another_mesh_is_refused() -> None:
    elsewhere = mesh_id_of(STRANGER.public_key)
    stray = sign_record(ROOT, elsewhere, founding())
    assert refused(encode([stray])).reason is Reason.SIGNATURE


def test_a_signature_for_one_kind_of_record_fits_no_other() -> None:
    """The root signs a grant whose bytes, but for the type number, could pass for something else."""
    payload = signed(founding()).payload
    signature = ROOT.sign(b"meshnode invite grant 1\0" + MESH.encode() + payload)
    assert refused(encode([SignedRecord(payload, signature)])).reason is Reason.SIGNATURE


def test_another_root_is_another_mesh() -> None:
    error = refused(encode([signed(founding())], root=STRANGER))
    assert error.reason is Reason.WRONG_MESH


def test_the_chain_of_another_node_is_refused_before_any_signature_is_checked() -> None:
    unsigned = SignedRecord(signed(founding()).payload, bytes(64))
    with pytest.raises(TrustError, match="another node") as caught:
        verify_chain(encode([unsigned]), MESH, subject=STRANGER.public_key)
    assert caught.value.reason is Reason.NOT_A_MEMBER


def test_a_node_admitted_twice_has_its_highest_role_in_any_order() -> None:
    as_member = (granting(role=Role.MEMBER), joining(role=Role.MEMBER))
    as_operator = (granting(invite=THIRD), joining(invite=THIRD))
    for records in ((*as_member, *as_operator), (*as_operator, *as_member)):
        assert verify_chain(chain_of(founding(), *records), MESH).role is Role.OPERATOR


def test_what_a_node_issued_since_its_first_admission_holds_after_a_second_one() -> None:
    first = (granting(ttl_s=9000), joining())
    again = (granting(invite=THIRD, ttl_s=9000), joining(invite=THIRD, at_s=NOW_S + 5000))
    witnessed = joining(STRANGER, JOINER, at_s=NOW_S + 10)
    assert verify_chain(chain_of(founding(), *first, *again, witnessed), MESH).issued_at_s == (
        NOW_S + 10
    )


def test_fields_that_a_newer_version_appended_are_ignored_but_stay_signed() -> None:
    payload = msgspec.msgpack.encode([*msgspec.msgpack.decode(signed(founding()).payload), "new"])
    signature = ROOT.sign(b"meshnode admission 1\0" + MESH.encode() + payload)
    assert verify_chain(encode([SignedRecord(payload, signature)]), MESH).role is Role.ADMIN
    changed = payload.replace(b"new", b"old")
    assert refused(encode([SignedRecord(changed, signature)])).reason is Reason.SIGNATURE


def test_a_record_of_an_unknown_kind_is_not_skipped() -> None:
    unknown = SignedRecord(msgspec.msgpack.encode([79, "restriction"]), bytes(64))
    error = refused(encode([unknown, signed(founding())]))
    assert "newer meshnode" in str(error)


@pytest.mark.parametrize("payload", [b"", b"\x00", b"\x92\x41", b"\x91\x41", b"\x91" * 1000])
def test_a_payload_that_is_no_record_is_refused(payload: bytes) -> None:
    error = refused(encode([SignedRecord(payload, bytes(64))]))
    assert "damaged" in str(error)


def test_another_message_is_no_chain() -> None:
    assert "another message" in str(refused(msgspec.msgpack.encode([60, 1, 2])))
    assert refused(b"").reason is Reason.NOT_A_MEMBER


def test_long_chains_are_refused_unread() -> None:
    records = [signed(founding())] * (MAX_CHAIN_RECORDS + 1)
    assert "damaged" in str(refused(encode(records)))
    assert str(MAX_CHAIN_BYTES) in str(refused(bytes(MAX_CHAIN_BYTES + 1)))


def test_fifteen_invitations_in_a_row_are_possible_and_the_next_says_what_to_do(
    founder: Identity, founded: VerifiedMember, admit_through: Admit
) -> None:
    inviter = (founder, founded)
    for number in range(15):
        joiner = key(f"joiner {number}")
        inviter = (joiner, admit_through(joiner, inviter))
    assert len(inviter[1].records) == MAX_CHAIN_RECORDS - 1
    assert len(inviter[1].chain) < MAX_CHAIN_BYTES
    with pytest.raises(Forbidden, match="on the founder"):
        admit_through(STRANGER, inviter)


def test_a_witness_with_a_long_chain_of_its_own_refuses_what_others_can_admit(
    founder: Identity, founded: VerifiedMember, admit_through: Admit
) -> None:
    witness = (founder, founded)
    for number in range(15):
        joiner = key(f"joiner {number}")
        witness = (joiner, admit_through(joiner, witness))
    with pytest.raises(TrustError, match="more than 32 records"):
        admit_through(STRANGER, (founder, founded), witness=witness)


class Pen(Identity):
    """The founder, counting what it signs."""

    signed = 0

    def sign(self, data: bytes) -> bytes:
        self.signed += 1
        return super().sign(data)


def try_to_admit(
    founded: VerifiedMember,
    grant: SignedRecord,
    proof: bytes,
    at_s: float = NOW_S,
    witness: Identity = FOUNDER,
) -> VerifiedMember:
    return admit(
        witness=witness, witness_member=founded, inviter=founded, grant=grant,
        subject=JOINER.public_key, invite_proof=proof, now_wall_s=at_s,
    )  # fmt: skip


def test_a_witness_checks_the_invite_before_it_signs(founded: VerifiedMember) -> None:
    proof = prove_invite(INVITE, MESH, JOINER.public_key)
    grant = signed(granting())
    assert try_to_admit(founded, grant, proof).node_id == JOINER.node_id
    cases = [
        (signed(founding()), proof, NOW_S, Reason.CHAIN),
        (SignedRecord(grant.payload, bytes(64)), proof, NOW_S, Reason.SIGNATURE),
        (grant, bytes(64), NOW_S, Reason.SIGNATURE),
        (grant, proof, NOW_S + 3601, Reason.EXPIRED),
        (grant, proof, NOW_S - MAX_CLOCK_SKEW_S - 1, Reason.CLOCK),
    ]
    for grant, proof, at_s, reason in cases:
        pen = Pen(hashlib.sha256(b"founder").digest())
        with pytest.raises(TrustError) as caught:
            try_to_admit(founded, grant, proof, at_s, pen)
        assert caught.value.reason is reason
        assert pen.signed == 0


def test_a_grant_by_another_than_the_inviter_named_admits_nobody(founded: VerifiedMember) -> None:
    proof = prove_invite(INVITE, MESH, JOINER.public_key)
    with pytest.raises(TrustError, match="does not admit"):
        try_to_admit(founded, signed(granting(STRANGER)), proof)


def test_an_invite_names_itself_and_its_inviter(founded: VerifiedMember) -> None:
    invite = create_invite(
        identity=FOUNDER, member=founded, role=Role.MEMBER, ttl_s=60, now_wall_s=NOW_S,
        seeds=(), random_seed=bytes(32),
    )  # fmt: skip
    assert invite.grant.inviter == FOUNDER.node_id
    assert len(invite.grant.invite_id) == 16
    assert invite.grant.invite_id != granting().invite_id


def test_repr_of_a_member_is_short_and_times_are_rfc_3339(founded: VerifiedMember) -> None:
    assert FOUNDER.node_id in repr(founded)
    assert "chain=" not in repr(founded)
    assert rfc3339(NOW_S + 0.9) == "2027-01-15T08:00:00Z"
