"""Stories of members that a mesh excludes: evicted, come too late for an invite, away meanwhile."""

from __future__ import annotations

import msgspec
import pytest

from meshnode.effects import Effect, SendNote
from meshnode.node import NodeConfig
from meshnode.sim.mesh import SimMesh
from meshnode.state.config import DesiredConfig
from meshnode.state.desired_messages import DESIRED, DesiredEntries, Entry
from meshnode.state.hybrid_clock import Stamp
from meshnode.state.statements import admission_key
from meshnode.trust.chain import admit
from meshnode.trust.identity import Identity
from meshnode.trust.reasons import Reason, TrustError
from meshnode.types import NodeState, Role

SETTLED_S = 8.0
BRIEF = NodeConfig(desired=DesiredConfig(tombstone_s=600.0))
"""A mesh for which ten minutes are the week that it remembers deletions for."""


def build(
    *names: str,
    seed: int = 1,
    admins: int = 2,
    hostile: tuple[str, ...] = (),
    config: NodeConfig | None = None,
) -> SimMesh:
    """Return a mesh whose nodes have found each other; the first ones are admins."""
    mesh = SimMesh(seed, config=config)
    for index, name in enumerate(names):
        role = Role.ADMIN if index < admins else Role.OPERATOR
        mesh.add(name, "eu", role=role, obedient=name not in hostile)
    mesh.run_for(SETTLED_S)
    return mesh


def links_of(mesh: SimMesh, name: str) -> list[str]:
    return sorted(mesh.name_of(peer) for peer in mesh.world.links.peers(mesh.world.id_of(name)))


def knows(mesh: SimMesh, name: str, other: str) -> bool:
    """Whether a node takes another one for a member, in trust or in membership."""
    node = mesh.world.id_of(other)
    return other in mesh.members(name) or node in mesh.node(name).membership.members


def all_alive(mesh: SimMesh, names: str) -> bool:
    """Whether these nodes take each other to be alive."""
    seen = (
        mesh.node(name).membership.members.get(mesh.world.id_of(other))
        for name in names
        for other in names
    )
    return all(member is not None and member.state is NodeState.ALIVE for member in seen)


def put(mesh: SimMesh, by: str, value: bytes) -> None:
    """Write a policy, as whoever may change the mesh does."""
    desired = mesh.node(by).desired
    mesh.write(by, lambda _, wall_s: desired.draft({"policy/x": value}, wall_s))


def policies(mesh: SimMesh) -> set[bytes | None]:
    return {mesh.node(name).desired.get("policy/x") for name in mesh.world.running()}


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
def test_an_eviction_closes_every_link_of_the_node_within_a_second(seed: int) -> None:
    names = [f"n{number}" for number in range(12)]
    mesh = build(*names, seed=seed, hostile=("n5",))
    assert len(links_of(mesh, "n5")) == 11
    mesh.evict("n0", "n5")
    mesh.run_until(lambda: links_of(mesh, "n5") == [], limit_s=1.0)
    others = [name for name in names if name != "n5"]
    assert not any(knows(mesh, name, "n5") for name in others)
    # It goes on dialling, and nobody ever takes it back.
    mesh.run_for(300.0)
    assert links_of(mesh, "n5") == []
    assert not any(knows(mesh, name, "n5") for name in others)
    assert all(
        mesh.node(name).membership.members[mesh.world.id_of(other)].state is NodeState.ALIVE
        for name in others
        for other in others
    )


def test_an_evicted_node_is_told_why_and_ends() -> None:
    mesh = build("a", "b", "c", "d")
    mesh.evict("a", "c")
    mesh.run_until(lambda: "c" not in mesh.world.running(), limit_s=1.0)
    [told] = mesh.world.trace.find("trust.evicted", "c")
    assert "a test" in told.detail
    assert {each.node for each in mesh.world.trace.find("trust.revoked")} == {"a", "b", "d"}


def test_the_deployments_of_the_evicted_stay_and_its_later_ones_do_not_count() -> None:
    mesh = build("a", "b", "c", "d", hostile=("c",))
    put(mesh, "c", b"before")
    mesh.run_for(2.0)
    mesh.evict("a", "c")
    mesh.run_for(1.0)
    mesh.papers("c").authority._stated.clear()  # it does not care what was stated about it
    mesh.papers("c").authority._is_stale = True
    put(mesh, "c", b"after")
    mesh.run_for(30.0)
    assert {mesh.node(name).desired.get("policy/x") for name in "abd"} == {b"before"}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_an_eviction_on_one_side_of_a_partition_holds_everywhere_once_it_heals(seed: int) -> None:
    mesh = build("a", "b", "c", "d", "e", "f", seed=seed)
    mesh.world.partition(("a", "b", "c"), ("d", "e", "f"))
    mesh.run_for(30.0)
    mesh.evict("a", "f")
    put(mesh, "f", b"by f")
    mesh.run_for(1.0)
    put(mesh, "e", b"by e")
    mesh.run_for(30.0)
    assert "f" in mesh.members("e")
    assert mesh.node("d").desired.get("policy/x") == b"by e"
    put(mesh, "f", b"by f again")
    mesh.run_for(5.0)
    assert mesh.node("d").desired.get("policy/x") == b"by f again"
    mesh.world.heal()
    mesh.run_until(lambda: "f" not in mesh.world.running(), limit_s=120.0)
    mesh.run_until(lambda: not any(knows(mesh, name, "f") for name in "abcde"), limit_s=60.0)
    mesh.run_until(lambda: policies(mesh) == {b"by e"}, limit_s=60.0)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_of_two_nodes_that_race_for_one_use_of_an_invite_the_first_stays(seed: int) -> None:
    """Each side of a partition admits one; which it is does not depend on who hears of what first."""
    mesh = build("a", "b", "c", "d", seed=seed)
    invite = mesh.invite("a", uses=1)
    mesh.run_for(5.0)
    mesh.world.partition(("a", "b"), ("c", "d"))
    mesh.run_for(10.0)
    mesh.add("first", "eu", invite=invite, through="d")
    mesh.world.partition(("a", "b"), ("c", "d", "first"))
    mesh.run_for(10.0)
    with pytest.raises(TrustError) as refused:
        mesh.add("again", "eu", invite=invite, through="c")
    assert refused.value.reason is Reason.USED_UP
    mesh.add("second", "eu", invite=invite, through="b")
    mesh.world.partition(("a", "b", "second"), ("c", "d", "first"))
    mesh.run_for(20.0)
    assert "second" in mesh.members("a")
    assert "first" in mesh.members("c")
    mesh.world.heal()
    mesh.run_until(lambda: "second" not in mesh.world.running(), limit_s=120.0)
    [told] = mesh.world.trace.find("trust.evicted", "second")
    assert "came too late" in told.detail
    mesh.run_until(
        lambda: all(mesh.members(name) == ["a", "b", "c", "d", "first"] for name in "abcd"),
        limit_s=60.0,
    )
    assert mesh.members("first") == ["a", "b", "c", "d", "first"]


def test_an_invite_for_two_admits_two_whoever_witnesses() -> None:
    mesh = build("a", "b", "c")
    invite = mesh.invite("a", uses=2)
    for name, through in (("one", "b"), ("two", "c")):
        mesh.add(name, "eu", invite=invite, through=through)
        mesh.run_for(SETTLED_S)
    for through in ("a", "b", "c", "one"):
        with pytest.raises(TrustError) as refused:
            mesh.add("three", "eu", invite=invite, through=through)
        assert refused.value.reason is Reason.USED_UP


def test_a_witness_that_tells_nobody_hides_no_use() -> None:
    """Whoever meets a device first that an invite for one admitted states its admission."""
    mesh = build("a", "b", "c")
    invite = mesh.invite("a", uses=1)
    mesh.add("one", "eu", invite=invite, through="b")
    mesh.world.crash("b")  # before it could tell
    mesh.run_for(30.0)
    key = admission_key(mesh.world.id_of("one"))
    assert mesh.node("c").desired.statements(key)
    with pytest.raises(TrustError) as refused:
        mesh.add("two", "eu", invite=invite, through="c")
    assert refused.value.reason is Reason.USED_UP


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_of_two_admins_that_evict_each_other_the_earlier_stays_everywhere(seed: int) -> None:
    mesh = build("a", "b", "c", "d", seed=seed)
    mesh.world.partition(("a", "c"), ("b", "d"))
    mesh.run_for(20.0)
    mesh.evict("b", "a")
    mesh.run_for(5.0)
    mesh.evict("a", "b")
    mesh.run_for(30.0)
    assert mesh.members("c") == ["a", "c", "d"]
    assert mesh.members("d") == ["b", "c", "d"]
    mesh.world.heal()
    mesh.run_until(lambda: "a" not in mesh.world.running(), limit_s=120.0)
    mesh.run_until(
        lambda: all(mesh.members(name) == ["b", "c", "d"] for name in "bcd"), limit_s=60.0
    )
    mesh.run_until(lambda: all_alive(mesh, "bcd"), limit_s=60.0)


def test_a_node_that_was_away_for_weeks_learns_of_evictions_and_keeps_its_own() -> None:
    """Whoever was away takes over the mesh's state, and drops what it alone has; but not evictions."""
    mesh = build("a", "b", "c", "d", "e", config=BRIEF)
    mesh.world.partition(("a", "c", "d"), ("b",), ("e",))
    mesh.run_for(5.0)
    mesh.evict("b", "d")
    mesh.run_for(1.0)
    for name in ("b", "e"):
        mesh.world.crash(name)
    mesh.evict("a", "c")
    mesh.run_for(1500.0)
    mesh.world.heal()
    for name in ("b", "e"):
        mesh.world.restart(name)
    mesh.run_until(lambda: mesh.world.running() == ["a", "b", "e"], limit_s=300.0)
    mesh.run_until(
        lambda: all(mesh.members(name) == ["a", "b", "e"] for name in "abe"), limit_s=60.0
    )


def test_a_node_that_was_evicted_while_it_was_away_is_told_by_the_first_that_it_meets() -> None:
    mesh = build("a", "b", "c", "d")
    mesh.world.crash("d")
    mesh.run_for(5.0)
    mesh.evict("a", "d")
    mesh.run_for(600.0)
    mesh.world.restart("d")
    mesh.run_until(lambda: "d" not in mesh.world.running(), limit_s=60.0)
    assert list(mesh.world.trace.find("trust.evicted", "d"))
    assert not any(knows(mesh, name, "d") for name in "abc")


def test_an_evicted_operator_that_dates_an_admission_back_lets_nobody_in() -> None:
    """It signs a chain for an accomplice, older than its eviction, and a member passes it on."""
    mesh = build("a", "b", "evil", "fool", hostile=("evil",))
    evil = mesh.papers("evil")
    invite = mesh.invite("evil")
    accomplice = Identity(b"accomplice".ljust(32))
    mesh.run_for(60.0)
    back_s = mesh.world.wall_s() - 30.0
    mesh.evict("a", "evil")
    mesh.run_for(2.0)
    forged = admit(
        witness=evil.identity, witness_member=evil.member, inviter=evil.member,
        grant=invite.signed_grant, subject=accomplice.public_key,
        invite_proof=invite.prove(accomplice.public_key), now_wall_s=back_s,
    )  # fmt: skip
    key = admission_key(accomplice.node_id)
    unsigned = Entry(key, Stamp(int(back_s * 1000), 0), evil.identity.node_id, forged.chain)
    signature = evil.identity.sign(evil.authority.bound(unsigned.signed_bytes))
    entry = msgspec.structs.replace(unsigned, signature=signature)
    note = DESIRED.encode(DesiredEntries((entry,)))

    def pass_on(_now: float, _wall_s: float) -> list[Effect]:
        return [SendNote(mesh.world.id_of(name), note) for name in ("a", "b")]

    mesh.world.act("fool", pass_on)
    mesh.run_for(5.0)
    for name in ("a", "b", "fool"):
        assert accomplice.node_id not in mesh.papers(name).roster
        with pytest.raises(TrustError) as refused:
            mesh.papers(name).roster.add(forged.chain)
        assert refused.value.reason is Reason.REVOKED


def test_a_new_admin_evicts_while_the_founder_is_away() -> None:
    mesh = build("a", "b", "c", "d", admins=1)
    node = mesh.world.id_of("b")
    mesh.write("a", lambda drafts, wall_s: drafts.role(node, Role.ADMIN, wall_s))
    mesh.run_for(5.0)
    mesh.world.crash("a")
    mesh.evict("b", "d")
    mesh.run_until(lambda: "d" not in mesh.world.running(), limit_s=1.0)
    assert mesh.papers("c").roster.role(node) is Role.ADMIN
    mesh.world.restart("a")
    mesh.run_until(lambda: mesh.members("a") == ["a", "b", "c"], limit_s=60.0)


def test_the_same_seed_is_the_same_story() -> None:
    def digest() -> str:
        mesh = build("a", "b", "c", "d", seed=9)
        mesh.evict("a", "c")
        mesh.run_for(60.0)
        return mesh.world.trace.digest()

    assert digest() == digest()
