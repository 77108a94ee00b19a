"""Members, and former members, that state things about others which they may not state.

Each of them holds a key that is or was good, so its entries are signed well, and some member passes
them on: what counts must be decided from the statements alone, at every node alike.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import msgspec
import pytest

from meshnode.effects import SendNote
from meshnode.limits import MAX_STATEMENTS_PER_AUTHOR
from meshnode.sim.mesh import SimMesh
from meshnode.sim.trust import Papers
from meshnode.state.desired_messages import DESIRED, DesiredEntries, Entry
from meshnode.state.hybrid_clock import Stamp
from meshnode.state.statements import admission_key, revocation_key, role_key
from meshnode.trust.chain import admit, promote
from meshnode.trust.identity import Identity
from meshnode.trust.shares import Shares
from meshnode.trust.statements import Revocation, RoleChange, pack_keeps, write_statement
from meshnode.types import NodeId, Role

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.trust.chain import VerifiedMember

GOOD = ("founder", "second", "mason", "fool")


@pytest.fixture
def mesh() -> SimMesh:
    """Two admins, an operator, a plain member that passes everything on, and a hostile admin."""
    mesh = SimMesh(3)
    for name, role in zip(GOOD, (Role.ADMIN, Role.ADMIN, Role.OPERATOR, Role.MEMBER), strict=True):
        mesh.add(name, "eu", role=role)
    mesh.add("evil", "eu", role=Role.ADMIN, obedient=False)
    mesh.run_for(60.0)
    return mesh


def entry(mesh: SimMesh, author: str, key: str, value: bytes, ago_s: float = 0.0) -> Entry:
    """Return what a key signs, dated back by some seconds."""
    papers = mesh.papers(author)
    stamp = Stamp(int((mesh.world.wall_s() - ago_s) * 1000), 0)
    unsigned = Entry(key, stamp, papers.identity.node_id, value)
    signature = papers.identity.sign(papers.authority.bound(unsigned.signed_bytes))
    return msgspec.structs.replace(unsigned, signature=signature)


def revocation(mesh: SimMesh, author: str, whom: str, reason: str = "") -> Entry:
    subject = mesh.papers(whom).identity
    wall_s = int(mesh.world.wall_s())
    kept = pack_keeps({mesh.world.id_of(name): Role.ADMIN for name in (*GOOD, "evil")})
    value = write_statement(Revocation(subject.public_key, reason, wall_s, kept))
    return entry(mesh, author, revocation_key(subject.node_id), value)


def pass_on(mesh: SimMesh, *entries: Entry) -> None:
    """Let the fool tell everybody, and let it be heard."""
    note = DESIRED.encode(DesiredEntries(entries))
    effects = [SendNote(mesh.world.id_of(name), note) for name in GOOD if name != "fool"]
    mesh.world.act("fool", lambda _now, _wall_s: [*effects])
    mesh.run_for(3.0)


def refusals(mesh: SimMesh) -> int:
    return len(list(mesh.world.trace.find("desired.refused")))


def all_say(mesh: SimMesh, what: Callable[[str], bool]) -> bool:
    return all(what(name) for name in GOOD)


@pytest.mark.parametrize("author", ["mason", "fool"])
def test_who_is_no_admin_evicts_nobody_and_gives_no_role(mesh: SimMesh, author: str) -> None:
    member = mesh.papers(author).member
    change = write_statement(RoleChange(member.public_key, Role.ADMIN))
    pass_on(
        mesh,
        revocation(mesh, author, "founder"),
        entry(mesh, author, role_key(member.node_id), change),
    )
    assert refusals(mesh) == 2 * 3
    assert all_say(mesh, lambda name: len(mesh.members(name)) == 5)
    assert all_say(mesh, lambda name: mesh.papers(name).roster.role(member.node_id) is member.role)
    assert all_say(mesh, lambda name: mesh.node(name).desired.key_count == 0)


def test_an_eviction_that_another_admin_is_said_to_have_signed_counts_nowhere(
    mesh: SimMesh,
) -> None:
    forged = msgspec.structs.replace(
        revocation(mesh, "mason", "founder"), author=mesh.world.id_of("second")
    )
    pass_on(mesh, forged)
    assert refusals(mesh) == 3
    assert all_say(mesh, lambda name: "founder" in mesh.members(name))


def test_an_evicted_admin_evicts_nobody_however_often_it_says_so(mesh: SimMesh) -> None:
    """Its flood ends at its own room, and the good admins' evictions find theirs."""
    mesh.evict("founder", "evil")
    mesh.run_for(2.0)
    for number in range(0, 4 * MAX_STATEMENTS_PER_AUTHOR, 8):
        pass_on(
            mesh, *(revocation(mesh, "evil", "mason", str(n)) for n in range(number, number + 8))
        )
    mesh.run_for(20.0)
    assert all_say(mesh, lambda name: mesh.members(name) == sorted(GOOD))
    key = revocation_key(mesh.world.id_of("mason"))
    assert all_say(
        mesh,
        lambda name: len(mesh.node(name).desired.statements(key)) == MAX_STATEMENTS_PER_AUTHOR,
    )
    mesh.evict("second", "mason")
    mesh.run_for(2.0)
    assert all("mason" not in mesh.members(name) for name in ("founder", "second", "fool"))


def test_an_evicted_admin_that_dates_a_promotion_back_raises_nobody(mesh: SimMesh) -> None:
    evil, fool = mesh.papers("evil"), mesh.papers("fool")
    promoted = promote(
        admin=evil.identity, admin_member=evil.member, member=fool.member, role=Role.ADMIN,
        now_wall_s=mesh.world.wall_s() - 30.0,
    )  # fmt: skip
    mesh.evict("founder", "evil")
    mesh.run_for(2.0)
    value = write_statement(RoleChange(fool.member.public_key, Role.ADMIN, promoted.chain))
    pass_on(
        mesh,
        entry(mesh, "evil", admission_key(promoted.node_id), promoted.chain, 30.0),
        entry(mesh, "evil", role_key(promoted.node_id), value, 29.0),
        revocation(mesh, "fool", "second"),
    )
    for name in ("founder", "second", "mason"):
        assert mesh.papers(name).roster.role(promoted.node_id) is Role.MEMBER
        assert "second" in mesh.members(name)


def restart(mesh: SimMesh, name: str) -> None:
    mesh.crash(name)
    mesh.run_for(1.0)
    mesh.world.restart(name)
    mesh.run_for(20.0)


def test_an_eviction_that_is_copied_by_another_with_an_earlier_date_still_counts(
    mesh: SimMesh,
) -> None:
    """Also for whoever starts again or comes later, who have only what is kept."""
    for whom in ("evil", "mason"):
        mesh.evict("founder", whom)
        mesh.run_for(5.0)
    mason = mesh.world.id_of("mason")
    [told] = mesh.node("second").desired.statements(revocation_key(mason))
    pass_on(mesh, entry(mesh, "evil", told.key, told.value, 13.0))
    restart(mesh, "second")
    mesh.add("late", "eu")
    mesh.run_for(30.0)
    for name in ("founder", "second", "fool", "late"):
        authors = {each.author for each in mesh.node(name).desired.statements(told.key)}
        assert mesh.world.id_of("founder") in authors
        assert mesh.papers(name).authority.standing.revocation(mason) is not None
        assert mason not in mesh.papers(name).roster


@pytest.mark.parametrize("by_accomplice", [False, True])
def test_an_evicted_operator_makes_itself_no_key_by_dating_it_back(
    mesh: SimMesh, by_accomplice: bool
) -> None:
    """Neither in its own name, nor in that of a device that it admits with a false date."""
    mason = mesh.papers("mason")
    invite = mesh.invite("mason")
    mesh.run_for(20.0)
    put = {"policy/good": b"1"}
    mesh.write("mason", lambda _, wall_s: mesh.node("mason").desired.draft(put, wall_s))
    mesh.run_for(5.0)
    mesh.evict("founder", "mason")
    mesh.run_for(5.0)
    if by_accomplice:
        friend = Identity(b"accomplice".ljust(32))
        member = admit(
            witness=mason.identity, witness_member=mason.member, inviter=mason.member,
            grant=invite.signed_grant, subject=friend.public_key,
            invite_proof=invite.prove(friend.public_key), now_wall_s=mesh.world.wall_s() - 16.0,
        )  # fmt: skip
        author = Papers(friend, member)
    else:
        author = mason

    def signed(key: str, value: bytes, ago_s: float) -> Entry:
        stamp = Stamp(int((mesh.world.wall_s() - ago_s) * 1000), 0)
        unsigned = Entry(key, stamp, author.identity.node_id, value)
        signature = author.identity.sign(mason.authority.bound(unsigned.signed_bytes))
        return msgspec.structs.replace(unsigned, signature=signature)

    key = signed("key/backdoor", b"admin", 12.0)
    pass_on(mesh, signed(admission_key(author.identity.node_id), author.member.chain, 15.0), key)
    mesh.run_for(20.0)
    restart(mesh, "second")
    for name in ("founder", "second", "fool"):
        assert mesh.node(name).desired.get(key.key) is None
        assert mesh.node(name).desired.get("policy/good") == b"1"


def test_a_flood_of_statements_about_keys_that_nobody_has_ever_seen_takes_bounded_room(
    mesh: SimMesh,
) -> None:
    """An operator's is not even kept; of an admin each key costs some hundred bytes, once."""

    def about(author: str, number: int) -> Entry:
        public_key = number.to_bytes(32, "big")
        value = write_statement(Revocation(public_key, "", 0))
        key = revocation_key(Revocation(public_key, "", 0).node_id)
        return entry(mesh, author, key, value)

    pass_on(mesh, *(about("mason", number) for number in range(100)))
    assert all_say(mesh, lambda name: mesh.node(name).desired.size_bytes == 0)
    pass_on(mesh, *(about("evil", number) for number in range(100)))
    assert all_say(mesh, lambda name: 0 < mesh.node(name).desired.size_bytes < 100 * 400)
    assert all_say(mesh, lambda name: len(mesh.members(name)) == 5)


def test_a_note_that_claims_to_show_an_eviction_ends_nobody_without_an_admins_signature(
    mesh: SimMesh,
) -> None:
    """As a stranger may send it in a refusal: it can only show what would count anyhow."""
    notes = []
    for author in ("mason", "fool"):
        shown = revocation(mesh, author, "second")
        unsigned = msgspec.structs.replace(shown, author=mesh.world.id_of("founder"))
        notes += [DESIRED.encode(DesiredEntries((each,))) for each in (shown, unsigned)]
    effects = [SendNote(mesh.world.id_of("second"), note) for note in notes]
    mesh.world.act("fool", lambda _now, _wall_s: [*effects])
    mesh.run_for(3.0)
    assert not list(mesh.world.trace.find("trust.evicted"))
    assert "second" in mesh.world.running()


def test_ids_that_are_no_ids_are_only_names_of_nobody(mesh: SimMesh) -> None:
    """What a statement keeps is raw bytes; none of them can be made into a member."""
    raw = base64.b32decode(mesh.world.id_of("mason").upper())
    value = msgspec.msgpack.encode(
        [mesh.papers("mason").identity.public_key, "", 0, [raw + b"\xff"]]
    )
    key = revocation_key(mesh.world.id_of("mason"))
    pass_on(mesh, entry(mesh, "founder", key, value), entry(mesh, "founder", key + "x", value))
    assert refusals(mesh) == 3  # those under a key that is not the subject's
    assert all("mason" not in mesh.members(name) for name in ("founder", "second", "fool"))
    assert NodeId(mesh.world.id_of("fool")) in mesh.papers("founder").roster


def test_an_operator_that_floods_the_mesh_with_made_up_members_is_evicted_all_the_same(
    mesh: SimMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than one statement can name, and more than its room; others find theirs meanwhile."""
    monkeypatch.setattr("meshnode.trust.parts.MAX_KEPT_PER_STATEMENT", 8)
    for name in GOOD:
        authority = mesh.papers(name).authority
        monkeypatch.setattr(authority, "_shares", Shares(60_000, 90_000))
    mason, fool = mesh.papers("mason"), mesh.papers("fool")
    real = mesh.add("real", "eu", invite=mesh.invite("mason", role=Role.MEMBER), through="mason")
    mesh.run_for(10.0)
    invite = mesh.invite("mason", role=Role.OPERATOR)
    flood = [entry(mesh, "mason", admission_key(mason.member.node_id), mason.member.chain)]
    for number in range(100):
        made_up = Identity(number.to_bytes(32, "big"))
        chain = admit(
            witness=mason.identity, witness_member=mason.member, inviter=mason.member,
            grant=invite.signed_grant, subject=made_up.public_key,
            invite_proof=invite.prove(made_up.public_key), now_wall_s=mesh.world.wall_s(),
        ).chain  # fmt: skip
        flood.append(
            entry(mesh, ("mason", "fool")[number % 2], admission_key(made_up.node_id), chain)
        )
    for at in range(0, len(flood), 20):
        pass_on(mesh, *flood[at : at + 20])
    desired = mesh.node("second").desired
    assert 30 < desired.key_count < 70
    assert fool.member.node_id in mesh.papers("second").roster
    mesh.evict("second", "mason")
    mesh.run_for(5.0)
    key = revocation_key(mason.member.node_id)
    for name in ("founder", "second", "fool"):
        assert len(mesh.node(name).desired.statements(key)) > 3
        members = mesh.node(name).membership.members
        assert mason.member.node_id not in members
        assert {real, fool.member.node_id} <= members.keys()
    assert "real" in mesh.world.running()  # it was never out, not even for a moment
    assert len([*mesh.world.trace.find("trust.evicted")]) == 1


def test_an_eviction_with_all_whom_a_node_invited_does_not_stop_a_node_for_long(
    mesh: SimMesh,
) -> None:
    """One pass over the chains, whoever has let in however many."""
    mason, second = mesh.papers("mason"), mesh.papers("second")
    invite = mesh.invite("mason", role=Role.MEMBER)
    for number in range(600):
        made_up = Identity(number.to_bytes(32, "big"))
        chain = admit(
            witness=mason.identity, witness_member=mason.member, inviter=mason.member,
            grant=invite.signed_grant, subject=made_up.public_key,
            invite_proof=invite.prove(made_up.public_key), now_wall_s=mesh.world.wall_s(),
        )  # fmt: skip
        second.authority.learn(chain)
    asked = 0
    every_chain = second.authority.chains

    def chains() -> list[VerifiedMember]:
        nonlocal asked
        asked += 1
        return every_chain()

    second.authority.chains = chains  # type: ignore[method-assign]
    draft = mesh.node("second").drafts.eviction(
        mason.member.node_id, "", False, mesh.world.wall_s()
    )
    assert len({each.key for each in draft.entries} - {admission_key(second.member.node_id)}) == 601
    assert asked <= 2
