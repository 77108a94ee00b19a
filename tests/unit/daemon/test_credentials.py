"""Who this node is: founding, being admitted, and what is on its disk."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest

from meshnode.daemon.credentials import Credentials
from meshnode.datafolder import DataFolder, MeshFile
from meshnode.errors import ConfigError, InvalidRequest
from meshnode.limits import MAX_SEEDS
from meshnode.net.clock import RealClock
from meshnode.state.desired_messages import Entry
from meshnode.state.desired_store import pack
from meshnode.state.hybrid_clock import Stamp
from meshnode.state.statements import admission_key, revocation_key
from meshnode.trust.chain import VerifiedMember, admit
from meshnode.trust.identity import Identity
from meshnode.trust.invite import Invite
from meshnode.trust.reasons import TrustError
from meshnode.trust.statements import Revocation, pack_keeps, write_statement
from meshnode.types import Address, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[str], Credentials]]:
    folders: list[DataFolder] = []

    def start(name: str) -> Credentials:
        for folder in folders:
            if folder.path == tmp_path / name:
                folder.close()
        folders.append(DataFolder(tmp_path / name))
        return Credentials(folders[-1], RealClock())

    yield start
    for folder in folders:
        folder.close()


def admitted_by(founder: Credentials, name: str, role: Role = Role.OPERATOR) -> tuple[
    Identity, VerifiedMember
]:  # fmt: skip
    identity = Identity(hashlib.sha256(name.encode()).digest())
    invite = founder.create_invite(600, [Address("192.0.2.1", 1)])
    member = admit(
        witness=founder.identity,
        witness_member=founder.member,
        inviter=founder.member,
        grant=invite.signed_grant,
        subject=identity.public_key,
        invite_proof=invite.prove(identity.public_key),
        now_wall_s=RealClock().wall_s(),
    )
    return identity, member


def test_a_founder_is_its_meshs_admin_also_after_a_restart(
    opened: Callable[[str], Credentials],
) -> None:
    first = opened("a")
    assert first.mesh_id is None
    first.found()
    again = opened("a")
    assert again.mesh_id == first.mesh_id
    assert again.node_id == first.node_id
    assert again.member.role is Role.ADMIN
    assert again.boot != first.boot
    assert again.dropped == []
    assert "in mesh" in repr(again)


def test_a_joiner_keeps_its_admission_and_where_the_mesh_is(
    opened: Callable[[str], Credentials],
) -> None:
    founder, joiner = opened("a"), opened("b")
    founder.found()
    joiner.invite = founder.create_invite(600, [Address("192.0.2.1", 1)])
    member = admit(
        witness=founder.identity,
        witness_member=founder.member,
        inviter=founder.member,
        grant=joiner.invite.signed_grant,
        subject=joiner.identity.public_key,
        invite_proof=joiner.invite.prove(joiner.identity.public_key),
        now_wall_s=RealClock().wall_s(),
    )
    joiner.admitted(member)
    assert joiner.authority.learn(founder.member) is None
    again = opened("b")
    assert again.seeds == (Address("192.0.2.1", 1),)
    assert again.roster.public_key(founder.node_id) == founder.identity.public_key


def test_a_damaged_admission_is_named(opened: Callable[[str], Credentials]) -> None:
    first = opened("a")
    first.found()
    first._folder.save_mesh(MeshFile(str(first.mesh_id), b"garbage"))
    with pytest.raises(ConfigError, match=r"mesh is damaged .*join again with\s+a new invite"):
        opened("a")


def test_the_admission_of_another_node_is_named(opened: Callable[[str], Credentials]) -> None:
    first = opened("a")
    first.found()
    (first._folder.path / "identity.key").write_bytes(bytes(32))
    with pytest.raises(ConfigError, match="mixes the identity of one node"):
        opened("a")


def test_a_damaged_roster_is_dropped_with_a_sentence(
    opened: Callable[[str], Credentials],
) -> None:
    first = opened("a")
    first.found()
    first._folder.save_state("roster", b"garbage")
    again = opened("a")
    assert "roster" in again.dropped[0]
    assert again.roster.role(again.node_id) is Role.ADMIN


def test_a_disk_that_is_full_costs_no_member(
    opened: Callable[[str], Credentials],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    founder = opened("a")
    founder.found()
    with monkeypatch.context() as patch:

        def full(key: str, value: bytes) -> None:
            raise ConfigError("the disk is full")

        patch.setattr(founder._folder, "save_state", full)
        for name in ("b", "c"):
            assert founder.authority.learn(admitted_by(founder, name)[1]) is None
    assert caplog.text.count("the disk is full") == 1
    assert len(founder.roster) == 3
    founder.authority.learn(admitted_by(founder, "d")[1])
    assert len(opened("a").roster) == 4


def record(identity: Identity, chain: bytes, signature: bytes | None = None) -> Any:
    signed = b"what is signed"
    return SimpleNamespace(
        node_id=identity.node_id,
        public_key=identity.public_key,
        chain=chain,
        signature=identity.sign(signed) if signature is None else signature,
        signed_bytes=lambda: signed,
    )


def test_a_members_record_needs_its_admission_and_its_signature(
    opened: Callable[[str], Credentials], monkeypatch: pytest.MonkeyPatch
) -> None:
    founder = opened("a")
    founder.found()
    one, member = admitted_by(founder, "one")
    two, other = admitted_by(founder, "two")
    assert founder.authority.verify_record(record(one, member.chain)) is None
    assert founder.authority.verify_record(record(one, member.chain)) is None
    assert (
        founder.authority.verify_record(record(one, other.chain))
        == "its admission does not hold: it is another node's"
    )
    forged = founder.authority.verify_record(record(one, member.chain, bytes(64)))
    assert forged == "its signature does not fit"
    garbage = founder.authority.verify_record(record(two, b"garbage"))
    assert garbage is not None
    assert "its admission does not hold" in garbage
    monkeypatch.setattr(founder.roster, "_max_members", 2)
    full = founder.authority.verify_record(record(two, other.chain))
    assert full is not None
    assert "the most it can have" in full


def test_a_change_of_the_mesh_needs_an_operators_signature(
    opened: Callable[[str], Credentials], monkeypatch: pytest.MonkeyPatch
) -> None:
    founder = opened("a")
    founder.found()
    identity, member = admitted_by(founder, "one")
    signature = identity.sign(founder.authority.bound(b"entry"))
    order = (int(RealClock().wall_s() * 1000), 0, identity.node_id, b"")

    def entry(author: str, signature: bytes) -> Entry:
        made = SimpleNamespace(
            key="x", author=author, signed_bytes=b"entry", signature=signature, order=order,
            digest=bytes(16),
        )  # fmt: skip
        return cast("Entry", made)

    assert founder.authority.verify_entry(entry(identity.node_id, signature)) == (
        "its author is not known here"
    )
    founder.authority.learn(member)
    assert founder.authority.verify_entry(entry(identity.node_id, signature)) is None
    forged = founder.authority.verify_entry(entry(identity.node_id, bytes(64)))
    assert forged == "its signature does not fit"
    monkeypatch.setattr(Role, "allows", lambda self, needed: False)
    refused = founder.authority.verify_entry(entry(identity.node_id, signature))
    assert refused == "its author is an operator and may not change that"


def test_seeds_of_a_later_invite_come_first_and_are_bounded(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    credentials = Credentials(folder, RealClock())
    credentials.found()
    stored = folder.mesh()
    old = [Address("192.0.2.1", port) for port in range(1, 7)]
    new = [Address("192.0.2.9", port) for port in range(1, 4)]
    credentials.remember_seeds(old)
    credentials.remember_seeds([*new, old[0]])
    assert credentials.seeds == (*new, *old)[:MAX_SEEDS]
    folder.close()
    again = DataFolder(tmp_path / "data")
    assert Credentials(again, RealClock()).seeds == credentials.seeds
    mesh = again.mesh()
    assert mesh is not None
    assert stored is not None
    assert (mesh.mesh_id, mesh.chain, mesh.root_seed) == (
        stored.mesh_id,
        stored.chain,
        stored.root_seed,
    )
    again.close()


def handed_over(credentials: Credentials, successor: VerifiedMember) -> None:
    """State, durably, that a new key takes this one's place, as the running node does."""
    authority, wall_s = credentials.authority, RealClock().wall_s()
    kept = pack_keeps({successor.node_id: Role.ADMIN})
    revocation = Revocation(credentials.identity.public_key, "rotated", int(wall_s), kept)
    entries = []
    for number, (key, value) in enumerate(
        (
            (admission_key(successor.node_id), successor.chain),
            (revocation_key(credentials.node_id), write_statement(revocation)),
        )
    ):
        stamp = Stamp(int(wall_s * 1000) + number, 0)
        unsigned = Entry(key, stamp, credentials.node_id, value)
        signature = credentials.identity.sign(authority.bound(unsigned.signed_bytes))
        entries.append(msgspec.structs.replace(unsigned, signature=signature))
    credentials._folder.save_state("desired", pack(entries, None))


def test_a_device_goes_on_with_the_key_that_it_has_handed_over_to(
    opened: Callable[[str], Credentials],
) -> None:
    first = opened("a")
    first.found()
    successor = first.make_successor()
    assert first.node_id != successor.node_id
    handed_over(first, successor)
    first.succeed()
    again = opened("a")
    assert again.node_id == successor.node_id
    assert (again.mesh_id, again.member.role) == (first.mesh_id, Role.ADMIN)
    assert first.node_id not in again.roster
    mesh = again._folder.mesh()
    assert mesh is not None
    assert mesh.root_seed  # it is still the founder's device


def test_a_crash_between_the_word_and_the_deed_is_made_up_for(
    opened: Callable[[str], Credentials],
) -> None:
    first = opened("a")
    first.found()
    successor = first.make_successor()
    handed_over(first, successor)
    again = opened("a")
    assert again.node_id == successor.node_id
    assert again.member.role is Role.ADMIN


def test_a_successor_that_was_never_named_changes_nothing(
    opened: Callable[[str], Credentials],
) -> None:
    first = opened("a")
    first.found()
    first.make_successor()
    assert opened("a").node_id == first.node_id


def test_a_crash_while_the_new_key_is_put_in_its_place_is_finished_at_the_next_start(
    opened: Callable[[str], Credentials], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened("a")
    first.found()
    successor = first.make_successor()
    handed_over(first, successor)

    def full(*_: object) -> None:
        raise ConfigError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(DataFolder, "save_mesh", full)
        with pytest.raises(ConfigError, match="the disk is full"):
            first.succeed()
    assert opened("a").node_id == successor.node_id


def test_a_sealed_founder_forgets_the_root(opened: Callable[[str], Credentials]) -> None:
    first = opened("a")
    first.found()
    first.drop_root()
    mesh = first._folder.mesh()
    assert mesh is not None
    assert mesh.root_seed == b""
    assert opened("a").member.role is Role.ADMIN


def test_a_node_that_is_out_knows_it_at_its_next_start(
    opened: Callable[[str], Credentials],
) -> None:
    founder = opened("a")
    founder.found()
    identity, member = admitted_by(founder, "one")
    founder.authority.learn(member)
    wall_s = RealClock().wall_s()
    value = write_statement(Revocation(identity.public_key, "stolen", int(wall_s)))
    stamp = Stamp(int(wall_s * 1000), 0)
    unsigned = Entry(revocation_key(member.node_id), stamp, founder.node_id, value)
    signature = founder.identity.sign(founder.authority.bound(unsigned.signed_bytes))
    entry = msgspec.structs.replace(unsigned, signature=signature)
    founder._folder.save_state("desired", pack([entry], None))
    again = opened("a")
    assert member.node_id not in again.roster
    [dropped] = again.dropped
    assert "stolen" in dropped
    flaw = again.authority.why_out(member.node_id)
    assert flaw is not None
    assert flaw.sentence == dropped
    with pytest.raises(TrustError, match="stolen"):
        again.roster.require_good(member)


def test_an_invite_says_how_many_it_is_for_and_where(
    opened: Callable[[str], Credentials],
) -> None:
    founder = opened("a")
    founder.found()
    invite = founder.create_invite(600, [], Role.ADMIN, uses=3, region="eu")
    grant = Invite.parse(invite.to_text()).grant
    assert (grant.role, grant.uses, grant.region) == (Role.ADMIN, 3, "eu")
    with pytest.raises(InvalidRequest, match="1 to 4096 devices"):
        founder.create_invite(600, [], uses=5000)
    with pytest.raises(InvalidRequest, match="a region has at most"):
        founder.create_invite(600, [], region="x" * 64)
