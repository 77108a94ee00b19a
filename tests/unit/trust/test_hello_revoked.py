"""The handshake with those whom the mesh has excluded, and with invites that are no good any more."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest

from meshnode.trust.chain import VerifiedMember
from meshnode.trust.hello import AcceptorHello, DiallerHello, State
from meshnode.trust.identity import Identity
from meshnode.trust.invite import Invite, create_invite
from meshnode.trust.reasons import Reason
from meshnode.trust.roster import Roster
from meshnode.trust.standing import InviteUses, Standing, Stated, standing_of
from meshnode.trust.statements import Revocation, pack_keeps, write_statement
from meshnode.types import Role

NOW_S = 1_800_000_000
CERTIFICATE = hashlib.sha256(b"certificate").digest()
Admit = Callable[..., VerifiedMember]


def key(name: str) -> Identity:
    return Identity(hashlib.sha256(name.encode()).digest())


@pytest.fixture
def mason(founder: Identity, founded: VerifiedMember, admit_through: Admit) -> VerifiedMember:
    return admit_through(key("mason"), (founder, founded))


@pytest.fixture
def roster(founded: VerifiedMember, mason: VerifiedMember) -> Roster:
    made = Roster(founded.mesh_id)
    for member in (founded, mason):
        made.add(member.chain)
    return made


def evict(roster: Roster, by: VerifiedMember, whom: VerifiedMember, *kept: VerifiedMember) -> None:
    packed = pack_keeps({each.node_id: Role.ADMIN for each in kept})
    said = Revocation(whom.public_key, "stolen", NOW_S + 10, packed)
    order = ((NOW_S + 10) * 1000, 0, by.node_id, write_statement(said))
    known = {member.node_id: [member] for member in roster}
    roster.apply(
        standing_of([Stated.of(order, said)], InviteUses(), lambda node: known.get(node, ()))
    )


def acceptor(identity: Identity, member: VerifiedMember, roster: Roster) -> AcceptorHello:
    hello = AcceptorHello(
        identity=identity, member=member, roster=roster, boot=1, nonce=b"a" * 32,
        certificate_hash=CERTIFICATE, versions=(1, 1), wall_s=NOW_S + 20,
    )  # fmt: skip
    hello.start()
    return hello


def dialler(
    identity: Identity, credential: VerifiedMember | Invite, roster: Roster | None = None
) -> DiallerHello:
    return DiallerHello(
        identity=identity, credential=credential, boot=2, nonce=b"d" * 32,
        certificate_hash=CERTIFICATE, versions=(1, 1), roster=roster,
    )  # fmt: skip


def meet(one: DiallerHello, other: AcceptorHello) -> None:
    data = one.start()
    while data:
        data = one.receive(other.receive(data))


def test_an_evicted_node_is_refused_and_shown_why(
    founder: Identity, founded: VerifiedMember, mason: VerifiedMember, roster: Roster
) -> None:
    evict(roster, founded, mason)
    roster.evidence = lambda member: b"shown to " + member.node_id.encode()
    one, other = dialler(key("mason"), mason), acceptor(founder, founded, roster)
    meet(one, other)
    assert other.state is State.FAILED
    assert one.failed is not None
    assert (one.failed.reason, one.failed.by_peer, one.failed.by_member) == (
        Reason.REVOKED, True, True,
    )  # fmt: skip
    assert "was evicted" in str(one.failed)
    assert "(stolen)" in str(one.failed)
    assert one.failed.evidence == b"shown to " + mason.node_id.encode()


def test_a_member_does_not_link_to_an_evicted_node_either(
    founder: Identity, founded: VerifiedMember, mason: VerifiedMember, roster: Roster
) -> None:
    theirs = Roster(founded.mesh_id)
    theirs.add(mason.chain)
    evict(roster, founded, mason)
    roster.evidence = lambda _: b"proof"
    one, other = dialler(founder, founded, roster), acceptor(key("mason"), mason, theirs)
    meet(one, other)
    assert one.failed is not None
    assert (one.failed.reason, one.failed.by_peer) == (Reason.REVOKED, False)
    assert other.failed is not None
    assert (other.failed.reason, other.failed.by_member) == (Reason.REVOKED, False)
    assert other.failed.evidence == b"proof"


def test_a_stranger_that_refuses_is_no_member(
    founder: Identity, founded: VerifiedMember, mason: VerifiedMember, roster: Roster
) -> None:
    """Its word must not end a node: nothing but a member could refuse it so late."""
    other = acceptor(founder, founded, roster)
    one = dialler(key("mason"), mason)
    other._mesh_id = type(other._mesh_id)("0" * 32)
    meet(one, other)
    assert one.failed is not None
    assert (one.failed.by_peer, one.failed.by_member) == (True, False)


def test_an_invite_dies_with_the_membership_of_who_made_it(
    founder: Identity, founded: VerifiedMember, mason: VerifiedMember, roster: Roster
) -> None:
    invite = create_invite(
        identity=key("mason"), member=mason, role=Role.MEMBER, ttl_s=600, now_wall_s=NOW_S,
        seeds=(), random_seed=bytes(32),
    )  # fmt: skip
    evict(roster, founded, mason)
    one, other = dialler(key("guest"), invite), acceptor(founder, founded, roster)
    meet(one, other)
    assert one.failed is not None
    assert one.failed.reason is Reason.REVOKED
    assert "ask for a new one" in str(one.failed)


def test_an_evicted_key_does_not_come_back_with_a_new_invite(
    founder: Identity, founded: VerifiedMember, mason: VerifiedMember, roster: Roster
) -> None:
    invite = create_invite(
        identity=founder, member=founded, role=Role.MEMBER, ttl_s=600, now_wall_s=NOW_S,
        seeds=(), random_seed=bytes(32),
    )  # fmt: skip
    evict(roster, founded, mason)
    one, other = dialler(key("mason"), invite), acceptor(founder, founded, roster)
    meet(one, other)
    assert one.failed is not None
    assert one.failed.reason is Reason.REVOKED


def test_an_invite_for_one_admits_no_second_and_the_first_again(
    founder: Identity, founded: VerifiedMember, roster: Roster
) -> None:
    invite = create_invite(
        identity=founder, member=founded, role=Role.MEMBER, ttl_s=600, now_wall_s=NOW_S,
        seeds=(), random_seed=bytes(32), uses=1, region="eu",
    )  # fmt: skip
    invite = Invite.parse(invite.to_text())
    assert (invite.grant.uses, invite.grant.region) == (1, "eu")
    for _ in range(2):
        one, other = dialler(key("guest"), invite), acceptor(founder, founded, roster)
        meet(one, other)
        assert other.result is not None
        assert other.result.admitted is not None
        roster.add(other.result.admitted.chain)
        roster.standing.uses.register(other.result.admitted)
    one, other = dialler(key("second guest"), invite), acceptor(founder, founded, roster)
    meet(one, other)
    assert one.failed is not None
    assert one.failed.reason is Reason.USED_UP
    assert "was for 1 device and is used up" in str(one.failed)


def test_a_roster_takes_its_roles_from_the_standing(
    founded: VerifiedMember, mason: VerifiedMember, roster: Roster
) -> None:
    assert roster.role(mason.node_id) is Role.OPERATOR
    evict(roster, founded, mason)
    assert mason.node_id not in roster
    roster.apply(Standing())
    assert roster.add(mason.chain) == mason
