"""Where the new version of a release is placed: beside the old one, and at nobody's cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.deployments import ALL_RESIDENT, Resident, known_of
from meshnode.fleet import Fleet
from meshnode.membership.member import Member
from meshnode.membership.messages import MemberRecord
from meshnode.models.manifest import FileEntry, Manifest
from meshnode.state.constraints import Resources
from meshnode.state.deployment import Deployment
from meshnode.state.release import Release, Step
from meshnode.suitability import Suitability, failing, mark_of
from meshnode.types import NodeState, node_id_of

if TYPE_CHECKING:
    from meshnode.deployments import Known

GIB = 1024**3


def manifest(name: str, version: int) -> Manifest:
    files = (FileEntry(f"{version}.onnx", 1, bytes(32)),)
    return Manifest(name, version, "onnx", "onnx", (), (), 0, files, f"{version}.onnx")


def deployment(
    name: str, *versions: int, begun_ms: int = 0, memory_bytes: int = GIB, **fields: Any
) -> Deployment:
    release = Release("canary", 1, 2, (Step(0.1),), begun_ms=begun_ms) if begun_ms else None
    manifests = tuple(manifest(name, version) for version in versions or (1,))
    resources = Resources(memory_bytes=memory_bytes)
    return Deployment(name, manifests, resources=resources, release=release, **fields)


def member(name: str, memory_bytes: int = 4 * GIB) -> Member:
    facts = {"cpus": 4, "runtimes": ["onnx"], "memory_bytes": memory_bytes}
    key = name.encode().ljust(32, b"\0")
    record = MemberRecord(key, name, "eu", "", {}, (), "", 1, 0, 1, facts, b"")
    return Member(node_id_of(key), record, NodeState.ALIVE, 0.0)


def under_way(known: Known) -> Resident:
    release = known.deployment.release
    return ALL_RESIDENT if release is None else Resident(frozenset({1}), release.candidate)


def fleet_of(*members: Member, **options: Any) -> Fleet:
    fleet = Fleet(resident=options.get("resident", under_way))
    fleet.update(members)
    return fleet


def test_the_new_version_lies_where_the_old_one_lies_as_long_as_there_is_room_for_both() -> None:
    fleet = fleet_of(*(member(str(number)) for number in range(8)))
    known = known_of(deployment("m", 1, 2, begun_ms=9, replicas=3))
    fleet.want("m", known)
    old, new = fleet.parts(known)
    assert ([*old.versions], [*new.versions]) == ([1], [2])
    assert old.placement.nodes == new.placement.nodes == fleet.placement(known.deployment).nodes
    assert new.is_candidate
    assert len(new.placement.nodes) == 3


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=6),
    st.lists(st.integers(1, 3), min_size=1, max_size=5),
    st.integers(1, 4),
)
def test_a_release_moves_nothing_that_was_there_before(
    memories: list[int], needs: list[int], replicas: int
) -> None:
    """Neither the old version nor any deployment that is older than the release."""
    nodes = [member(str(number), gib * GIB) for number, gib in enumerate(memories)]
    alone, fleet = fleet_of(*nodes), fleet_of(*nodes)
    others = [
        deployment(f"o{number}", memory_bytes=need * GIB, since_ms=number, replicas=2)
        for number, need in enumerate(needs)
    ]
    for each in others:
        alone.want(each.name, known_of(each))
        fleet.want(each.name, known_of(each))
    before = deployment("m", replicas=replicas, since_ms=2)
    after = deployment("m", 1, 2, begun_ms=100, replicas=replicas, since_ms=2)
    alone.want("m", known_of(before))
    fleet.want("m", known_of(after))
    assert fleet.placement(after).nodes == alone.placement(before).nodes
    for each in others:
        assert fleet.placement(each).nodes == alone.placement(each).nodes


def test_a_deployment_that_is_younger_than_a_release_takes_nothing_from_it() -> None:
    fleet = fleet_of(member("a", 2 * GIB))
    known = known_of(deployment("m", 1, 2, begun_ms=10, since_ms=1))
    younger = deployment("n", since_ms=11)
    fleet.want("m", known)
    fleet.want("n", known_of(younger))
    assert len(fleet.parts(known)[1].placement.nodes) == 1
    assert fleet.placement(younger).missing == 1


def test_a_new_version_without_room_is_told_why() -> None:
    fleet = fleet_of(member("a", GIB))
    known = known_of(deployment("m", 1, 2, begun_ms=10))
    fleet.want("m", known)
    old, new = (each.placement for each in fleet.parts(known))
    assert (old.missing, new.missing) == (0, 1)
    assert "are not promised to other deployments" in new.ineligible[0][1]


def test_what_is_resident_follows_the_release() -> None:
    now = {"resident": Resident(frozenset({1}), 2)}
    fleet = fleet_of(member("a"), resident=lambda _known: now["resident"])
    known = known_of(deployment("m", 1, 2, begun_ms=10))
    fleet.want("m", known)
    assert fleet.placement_of(known, 1) is not None
    assert fleet.placement_of(known, 2) is not None
    fleet.moved()
    now["resident"] = Resident(frozenset({2}))
    assert fleet.wanted_changed("m")
    assert fleet.placement_of(known, 1) is None
    assert [each.is_candidate for each in fleet.parts(known)] == [False]
    assert fleet.moved() == {"m"}
    assert fleet.want("m", None)
    assert repr(fleet) == "<Fleet of 1 nodes, 0 deployments>"


def test_a_new_version_has_a_replica_though_the_deployment_sleeps() -> None:
    fleet = Fleet((), lambda _deployment: 0, under_way)
    fleet.update([member("a")])
    known = known_of(deployment("m", 1, 2, begun_ms=10))
    fleet.want("m", known)
    old, new = (each.placement for each in fleet.parts(known))
    assert (len(old.nodes), len(new.nodes)) == (0, 1)


def test_nodes_that_gave_the_new_version_up_are_named() -> None:
    nodes = [member("a"), member("b")]
    fleet = fleet_of(*nodes)
    known = known_of(deployment("m", 1, 2, begun_ms=10))
    fleet.want("m", known)
    target = known.versions[2][0]
    word = failing("m", 2, target.digest, "no such operator")
    fleet.said(nodes[0].node_id, Suitability(failing=(word,)))
    old, new = fleet.parts(known)
    assert old.failing == {}
    assert "no such operator" in new.failing[nodes[0].node_id]
    assert nodes[0].node_id not in new.placement.nodes
    assert mark_of(target.digest) == word.mark
