"""Who this node is: founding, being admitted, and what is on its disk."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from meshnode.daemon.credentials import Credentials
from meshnode.datafolder import DataFolder, MeshFile
from meshnode.errors import ConfigError
from meshnode.limits import MAX_SEEDS
from meshnode.net.clock import RealClock
from meshnode.trust.chain import VerifiedMember, admit
from meshnode.trust.identity import Identity
from meshnode.types import Address, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from meshnode.state.desired_messages import Entry


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
        == "its admission is another node's"
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
    signature = identity.sign(b"entry")

    def entry(author: str, signature: bytes) -> Entry:
        made = SimpleNamespace(
            key="x", author=author, signed_bytes=b"entry", signature=signature, deleted=False
        )
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
    assert refused == "its author is a operator and may not change the mesh"


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
