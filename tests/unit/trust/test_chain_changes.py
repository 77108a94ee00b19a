"""Chains in which a member is promoted, or hands its place over to a new key."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import msgspec
import pytest

from meshnode.limits import MAX_CHAIN_RECORDS, MAX_CLOCK_SKEW_S
from meshnode.trust.chain import Chain, VerifiedMember, promote, succeed, verify_chain
from meshnode.trust.identity import Identity
from meshnode.trust.reasons import Reason, TrustError
from meshnode.trust.records import (
    Promotion,
    Record,
    SignedRecord,
    Succession,
    prove_successor,
    sign_record,
)
from meshnode.types import Role

NOW_S = 1_800_000_000
Admit = Callable[..., VerifiedMember]


def key(name: str) -> Identity:
    return Identity(hashlib.sha256(name.encode()).digest())


@pytest.fixture
def mason(founder: Identity, founded: VerifiedMember, admit_through: Admit) -> VerifiedMember:
    return admit_through(key("mason"), (founder, founded))


def with_record(member: VerifiedMember, signer: Identity, record: Record) -> bytes:
    records: tuple[SignedRecord, ...] = (
        *member.records, sign_record(signer, member.mesh_id, record),
    )  # fmt: skip
    return msgspec.msgpack.encode(Chain(member.root_public_key, records))


def refused(chain: bytes, member: VerifiedMember) -> TrustError:
    with pytest.raises(TrustError) as caught:
        verify_chain(chain, member.mesh_id)
    return caught.value


def succession(heir: Identity, former: Identity, member: VerifiedMember, at: int = 0) -> Succession:
    proof = prove_successor(heir, member.mesh_id, former.public_key)
    return Succession(heir.public_key, NOW_S + at, former.public_key, proof)


def test_a_promoted_member_has_the_higher_role_and_may_use_it(
    founder: Identity, founded: VerifiedMember, mason: VerifiedMember, admit_through: Admit
) -> None:
    promoted = promote(
        admin=founder, admin_member=founded, member=mason, role=Role.ADMIN, now_wall_s=NOW_S
    )
    assert (promoted.node_id, promoted.role) == (mason.node_id, Role.ADMIN)
    assert (promoted.issued_at_s, promoted.invite_key) == (mason.issued_at_s, mason.invite_key)
    guest = admit_through(key("guest"), (key("mason"), promoted), Role.ADMIN)
    assert guest.role is Role.ADMIN


def test_only_an_admin_of_the_chain_promotes_and_only_its_members(
    founder: Identity, founded: VerifiedMember, mason: VerifiedMember
) -> None:
    own = Promotion(key("mason").public_key, Role.ADMIN, NOW_S, key("mason").public_key)
    error = refused(with_record(mason, key("mason"), own), mason)
    assert (error.reason, "no admin" in str(error)) == (Reason.ROLE, True)
    stranger = Promotion(key("stranger").public_key, Role.ADMIN, NOW_S, founder.public_key)
    error = refused(with_record(mason, founder, stranger), mason)
    assert "does not admit" in str(error)
    by_stranger = Promotion(key("mason").public_key, Role.ADMIN, NOW_S, key("who").public_key)
    error = refused(with_record(mason, key("who"), by_stranger), mason)
    assert error.reason is Reason.CHAIN
    early = Promotion(
        key("mason").public_key, Role.ADMIN, NOW_S - MAX_CLOCK_SKEW_S - 1, founder.public_key
    )
    assert refused(with_record(mason, founder, early), mason).reason is Reason.CLOCK


def test_a_new_key_is_the_member_that_the_old_one_was(
    mason: VerifiedMember, admit_through: Admit
) -> None:
    heir = succeed(former=key("mason"), member=mason, successor=key("heir"), now_wall_s=NOW_S)
    assert (heir.node_id, heir.role) == (key("heir").node_id, Role.OPERATOR)
    assert heir.invite_key == b""
    guest = admit_through(key("guest"), (key("heir"), heir))
    assert guest.role is Role.OPERATOR


def test_a_place_is_handed_over_by_its_holder_to_a_new_key_that_agrees(
    founder: Identity, mason: VerifiedMember
) -> None:
    heir, former = key("heir"), key("mason")
    not_agreed = msgspec.structs.replace(succession(heir, former, mason), proof=bytes(64))
    error = refused(with_record(mason, former, not_agreed), mason)
    assert (error.reason, "new key's word" in str(error)) == (Reason.SIGNATURE, True)
    stolen = succession(heir, former, mason)
    assert refused(with_record(mason, heir, stolen), mason).reason is Reason.SIGNATURE
    to_member = succession(founder, former, mason)
    assert "to a member" in str(refused(with_record(mason, former, to_member), mason))
    early = succession(heir, former, mason, -MAX_CLOCK_SKEW_S - 1)
    assert refused(with_record(mason, former, early), mason).reason is Reason.CLOCK
    by_stranger = succession(heir, key("who"), mason)
    assert refused(with_record(mason, key("who"), by_stranger), mason).reason is Reason.CHAIN


def test_keys_can_be_changed_until_the_chain_is_full(mason: VerifiedMember) -> None:
    member, former = mason, key("mason")
    for number in range(MAX_CHAIN_RECORDS - len(mason.records)):
        heir = key(f"heir {number}")
        member = succeed(former=former, member=member, successor=heir, now_wall_s=NOW_S)
        former = heir
    with pytest.raises(TrustError, match="more than 32 records"):
        succeed(former=former, member=member, successor=key("last"), now_wall_s=NOW_S)
