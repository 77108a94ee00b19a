from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from meshnode.trust.chain import VerifiedMember, found_mesh
from meshnode.trust.identity import Identity
from meshnode.trust.reasons import Reason, TrustError
from meshnode.trust.roster import Roster
from meshnode.types import NodeId, Role

Admit = Callable[..., VerifiedMember]
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
    loaded, dropped = Roster.from_bytes(roster.to_bytes(), founded.mesh_id)
    assert list(loaded) == [founded, joined]
    assert dropped == []


def test_what_the_disk_damaged_is_dropped_and_reported(
    founded: VerifiedMember, joined: VerifiedMember
) -> None:
    data = msgspec.msgpack.encode([68, [founded.chain, joined.chain[:-1] + b"?"]])
    loaded, dropped = Roster.from_bytes(data, founded.mesh_id)
    assert list(loaded) == [founded]
    assert len(dropped) == 1
    assert dropped[0].startswith("entry 1 of the saved roster was dropped: ")


@pytest.mark.parametrize(
    ("data", "sentence"), [(b"", "damaged"), (b"\x92\x44\x01", "damaged"), (b"\x91\x01", "kind")]
)
def test_a_file_that_is_no_roster_is_dropped_and_reported(
    founded: VerifiedMember, data: bytes, sentence: str
) -> None:
    loaded, dropped = Roster.from_bytes(data, founded.mesh_id)
    assert len(loaded) == 0
    assert len(dropped) == 1
    assert sentence in dropped[0]
