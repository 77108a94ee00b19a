from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from meshnode.authority import Authority
from meshnode.sim.trust import Admissions
from meshnode.trust.chain import VerifiedMember, found_mesh
from meshnode.trust.identity import Identity
from meshnode.trust.reasons import Reason, TrustError
from meshnode.trust.roster import Roster
from meshnode.trust.standing import InviteUses, Stated, standing_of
from meshnode.trust.statements import Revocation
from meshnode.types import NodeId, Role

Admit = Callable[..., VerifiedMember]
NOW_S = 1_800_000_000.0
IdentityOf = Callable[[str], Identity]


@pytest.fixture
def joined(
    founder: Identity, founded: VerifiedMember, identity_of: IdentityOf, admit_through: Admit
) -> VerifiedMember:
    return admit_through(identity_of("joiner"), (founder, founded), Role.MEMBER)


def test_a_roster_answers_for_the_members_it_verified(
    founded: VerifiedMember, joined: VerifiedMember
) -> None:
    roster = Roster(founded.mesh_id)
    assert roster.add(founded.chain) == founded
    assert roster.add(joined.chain) == joined
    assert list(roster) == [founded, joined]
    assert roster.get(joined.node_id) == joined
    assert roster.public_key(joined.node_id) == joined.public_key
    assert roster.role(joined.node_id) is Role.MEMBER
    assert roster.chain(joined.node_id) == joined.chain
    assert joined.node_id in roster
    assert repr(roster) == f"<Roster of {founded.mesh_id}: 2 members>"


def test_a_roster_knows_nothing_of_strangers(founded: VerifiedMember) -> None:
    roster = Roster(founded.mesh_id)
    stranger = NodeId("a" * 32)
    assert roster.get(stranger) is None
    assert roster.public_key(stranger) is None
    assert roster.role(stranger) is None
    assert roster.chain(stranger) is None
    assert stranger not in roster


def test_a_chain_that_does_not_hold_changes_nothing(
    founded: VerifiedMember, founder: Identity, now_wall_s: float
) -> None:
    roster = Roster(founded.mesh_id)
    elsewhere = found_mesh(founder, bytes(32), now_wall_s)
    with pytest.raises(TrustError, match="another mesh"):
        roster.add(elsewhere.chain)
    with pytest.raises(TrustError):
        roster.add(founded.chain[:-1])
    assert len(roster) == 0


def test_a_full_roster_takes_no_new_member_but_knows_its_own(
    founded: VerifiedMember, joined: VerifiedMember
) -> None:
    roster = Roster(founded.mesh_id, max_members=1)
    roster.add(founded.chain)
    with pytest.raises(TrustError, match="1 members already") as caught:
        roster.add(joined.chain)
    assert caught.value.reason is Reason.FULL
    assert roster.add(founded.chain) == founded
    assert roster.is_full
    assert not Roster(founded.mesh_id, max_members=1).is_full


def test_of_two_admissions_every_roster_keeps_the_same_whatever_came_first(
    founder: Identity,
    founded: VerifiedMember,
    joined: VerifiedMember,
    identity_of: IdentityOf,
    admit_through: Admit,
    now_wall_s: float,
) -> None:
    joiner, inviter = identity_of("joiner"), (founder, founded)
    higher = admit_through(joiner, inviter, Role.OPERATOR, at_wall_s=now_wall_s + 9)
    later = admit_through(joiner, inviter, Role.MEMBER, at_wall_s=now_wall_s + 9)
    for kept, dropped in ((higher, joined), (joined, later)):
        for chains in ((kept, dropped), (dropped, kept)):
            roster = Roster(founded.mesh_id)
            for member in chains:
                roster.add(member.chain)
            assert list(roster) == [kept]


def test_a_roster_survives_the_disk(founded: VerifiedMember, joined: VerifiedMember) -> None:
    roster = Roster(founded.mesh_id)
    roster.add(founded.chain)
    roster.add(joined.chain)
    loaded = Roster(founded.mesh_id)
    dropped = loaded.load(roster.to_bytes())
    assert list(loaded) == [founded, joined]
    assert dropped == []


def test_what_the_disk_damaged_is_dropped_and_reported(
    founded: VerifiedMember, joined: VerifiedMember
) -> None:
    data = msgspec.msgpack.encode([68, [founded.chain, joined.chain[:-1] + b"?"]])
    loaded = Roster(founded.mesh_id)
    dropped = loaded.load(data)
    assert list(loaded) == [founded]
    assert len(dropped) == 1
    assert dropped[0].startswith("entry 1 of the saved roster was dropped: ")


@pytest.mark.parametrize(
    ("data", "sentence"), [(b"", "damaged"), (b"\x92\x44\x01", "damaged"), (b"\x91\x01", "kind")]
)
def test_a_file_that_is_no_roster_is_dropped_and_reported(
    founded: VerifiedMember, data: bytes, sentence: str
) -> None:
    loaded = Roster(founded.mesh_id)
    dropped = loaded.load(data)
    assert len(loaded) == 0
    assert len(dropped) == 1
    assert sentence in dropped[0]


def test_what_rests_on_one_operator_takes_no_more_than_its_room() -> None:
    """Not even through those that it has let in; an admin's invites have no such bound."""
    admissions = Admissions(1)
    founder = admissions.admit("founder", Role.ADMIN, NOW_S)
    mason = admissions.admit("mason", Role.OPERATOR, NOW_S)
    helper = admissions.join("helper", admissions.invite(mason, Role.OPERATOR, NOW_S), mason, NOW_S)
    roster = Roster(founder.member.mesh_id, max_per_operator=3)
    for each in (founder, mason, helper):
        roster.add(each.member.chain)
    helper.authority.learn(mason.member)
    made_up = [
        admissions.join(f"made up {n}", admissions.invite(by, Role.MEMBER, NOW_S), by, NOW_S)
        for n, by in enumerate((helper, helper, helper, mason))
    ]
    for each in made_up[:2]:
        roster.add(each.member.chain)
    for each in made_up[2:]:
        with pytest.raises(TrustError, match="has all the room that one may take") as refused:
            roster.add(each.member.chain)
        assert refused.value.reason is Reason.FULL
    for number in range(5):
        guest = admissions.join(
            f"guest {number}", admissions.invite(founder, Role.OPERATOR, NOW_S), founder, NOW_S
        )
        roster.add(guest.member.chain)
    assert len(roster) == 10
    assert roster.add(made_up[0].member.chain).node_id in roster  # whom it has, it keeps


def test_who_is_evicted_leaves_its_room_to_others() -> None:
    admissions = Admissions(1)
    founder = admissions.admit("founder", Role.ADMIN, NOW_S)
    mason = admissions.admit("mason", Role.OPERATOR, NOW_S)
    invite = admissions.invite(mason, Role.MEMBER, NOW_S)
    one, other = (admissions.join(name, invite, mason, NOW_S) for name in ("one", "other"))
    roster = Roster(founder.member.mesh_id, max_per_operator=1)
    roster.add(one.member.chain)
    with pytest.raises(TrustError, match="has all the room"):
        roster.add(other.member.chain)
    revocation = Revocation(one.identity.public_key, "", int(NOW_S))
    stated = Stated.of((int(NOW_S) * 1000 + 1, 0, founder.identity.node_id, b""), revocation)
    roster.apply(standing_of([stated], InviteUses(), lambda _: [founder.member]))
    assert roster.add(other.member.chain).node_id in roster


def test_a_chain_that_was_verified_is_not_verified_again(
    founded: VerifiedMember, joined: VerifiedMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its signatures costs a tenth of a millisecond, and a mesh has thousands of chains."""
    roster = Roster(founded.mesh_id)
    monkeypatch.delattr("meshnode.trust.roster.verify_chain")
    assert Authority(roster, lambda: None).learn(joined) is None
    assert joined.node_id in roster
