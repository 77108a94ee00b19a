from __future__ import annotations

import math
import random
from typing import Any

import pytest

from meshnode.deployments import Deployments, Fleet
from meshnode.limits import MAX_PLACEMENT_CPUS
from meshnode.membership.member import Member
from meshnode.membership.messages import MemberRecord
from meshnode.models.manifest import FileEntry, Manifest
from meshnode.state.config import DesiredConfig
from meshnode.state.deployment import KEY_PREFIX, Deployment
from meshnode.state.desired import DesiredState
from meshnode.types import NodeId, NodeState, node_id_of


def manifest(name: str = "m", runtime: str = "onnx", content: str = "x") -> Manifest:
    files = (FileEntry(content, 1, bytes(32)),)
    return Manifest(name, 1, runtime, runtime, (), (), 0, files, content)


def deployment(name: str = "m", runtime: str = "onnx", content: str = "x") -> Deployment:
    return Deployment(name, (manifest(name, runtime, content),))


@pytest.fixture
def desired() -> DesiredState:
    return DesiredState(
        NodeId("me"),
        sign=lambda _data: b"",
        verify=lambda _entry: None,
        config=DesiredConfig(),
        rng=random.Random(1),
    )


def put(core: DesiredState, key: str, value: bytes, wall_s: float) -> None:
    """Write as a driver with a working disk does; an empty value deletes."""
    draft = core.draft({key: value}, wall_s)
    core.commit(draft)


def test_a_deployment_is_decoded_once_for_each_of_its_values(desired: DesiredState) -> None:
    deployments = Deployments(desired)
    assert deployments.get("m") is None
    assert deployments.flaw("m") is None
    put(desired, KEY_PREFIX + "m", deployment().encode(), 1000.0)
    first = deployments.get("m")
    assert first is not None
    assert first.deployment == deployment()
    assert [target.digest for target in first.targets] == [manifest().digest]
    assert deployments.get("m") is first
    assert repr(deployments) == "<Deployments: 1 decoded>"
    put(desired, KEY_PREFIX + "m", deployment(content="y").encode(), 1001.0)
    second = deployments.get("m")
    assert second is not None
    assert second.deployment == deployment(content="y")
    put(desired, KEY_PREFIX + "m", b"", 1002.0)
    assert deployments.get("m") is None
    assert repr(deployments) == "<Deployments: 0 decoded>"


def test_what_is_no_deployment_is_left_alone_with_a_reason(desired: DesiredState) -> None:
    put(desired, KEY_PREFIX + "odd", b"\xc1", 1000.0)
    put(desired, KEY_PREFIX + "other", deployment("m").encode(), 1000.0)
    put(desired, KEY_PREFIX + "m", deployment("m").encode(), 1000.0)
    put(desired, "policy/m", b"something else", 1000.0)
    deployments = Deployments(desired)
    assert deployments.names() == ["m", "odd", "other"]
    assert [name for name in deployments.names() if deployments.get(name)] == ["m"]
    assert "not a deployment" in str(deployments.flaw("odd"))
    assert deployments.flaw("other") == "the value under 'other' is a deployment of 'm'"
    assert deployments.flaw("m") is None


def member(
    name: str, state: NodeState = NodeState.ALIVE, region: str = "eu", **capabilities: Any
) -> Member:
    facts = {"cpus": 4, "runtimes": ["onnx"]} | capabilities
    key = name.encode().ljust(32, b"\0")
    record = MemberRecord(key, name, region, "", {}, (), "", 1, 0, 1, facts, b"")
    return Member(node_id_of(key), record, state, 0.0)


def ids(*members: Member) -> set[NodeId]:
    return {each.node_id for each in members}


def test_placements_follow_the_members_and_only_what_matters_of_them() -> None:
    fleet = Fleet()
    a, b = member("a"), member("b")
    assert fleet.update([a, b])
    placed = fleet.placement(deployment())
    assert ids(a, b) == {*placed.ranking}
    assert fleet.placement(deployment()) is placed
    assert not fleet.update([member("a", NodeState.SUSPECT), member("b", disk={"free_bytes": 7})])
    assert fleet.placement(deployment()) is placed
    assert repr(fleet) == "<Fleet of 2 nodes, 1 placements known>"
    fleet.forget("m")
    assert repr(fleet) == "<Fleet of 2 nodes, 0 placements known>"
    assert fleet.update([member("a", NodeState.DEAD), b])
    assert fleet.placement(deployment()).ineligible == ((a.node_id, "it is dead"),)
    assert fleet.update([a, member("b", region="us")])


def test_one_member_that_changed_is_taken_as_if_all_were_looked_at() -> None:
    fleet = Fleet()
    a, b, c = member("a"), member("b"), member("c")
    members = {each.node_id: each for each in (a, b, c)}
    assert fleet.update(members.values())
    placed = fleet.placement(deployment())
    assert not fleet.take(member("a", NodeState.SUSPECT), members)
    assert fleet.placement(deployment()) is placed
    assert fleet.take(member("a", NodeState.DEAD), members)
    assert ids(b, c) == {*fleet.placement(deployment()).ranking}
    # Membership forgets the dead in silence; the next change shows it.
    assert fleet.take(b, {each.node_id: each for each in (b, c)})
    assert fleet.placement(deployment()).ineligible == ()
    assert fleet.drop(c.node_id)
    assert not fleet.drop(c.node_id)
    assert ids(b) == {*fleet.placement(deployment()).ranking}


def test_a_paused_node_is_placed_nothing_until_it_resumes() -> None:
    fleet = Fleet()
    a, b = member("a", paused="on battery"), member("b")
    fleet.update([a, b])
    placed = fleet.placement(deployment())
    assert placed.nodes == (b.node_id,)
    assert placed.ineligible == ((a.node_id, "paused: on battery"),)
    assert fleet.update([member("a"), b])
    assert len(fleet.placement(deployment()).ranking) == 2


def test_a_model_is_not_placed_where_it_could_not_be_loaded() -> None:
    fleet = Fleet()
    small, large = member("small", memory_bytes=30_000_000), member("large", memory_bytes=10**10)
    silent = member("silent")
    fleet.update([small, large, silent])
    placed = fleet.placement(deployment())
    assert set(placed.ranking) == ids(large, silent)
    ((node, reason),) = placed.ineligible
    assert node == small.node_id
    assert reason == ("it would take about 32 MiB of memory, and this node has 29 MiB for it")


@pytest.mark.parametrize(
    "nonsense",
    [
        {"paused": 3}, {"paused": ["x"]}, {"paused": ""}, {"memory_bytes": -5},
        {"memory_bytes": math.nan}, {"memory_bytes": "much"}, {"memory_bytes": True},
    ],
)  # fmt: skip
def test_whatever_else_a_record_says_the_node_can_be_placed(nonsense: dict[str, Any]) -> None:
    fleet = Fleet()
    node = member("a", **nonsense)
    fleet.update([node])
    assert fleet.placement(deployment()).nodes == (node.node_id,)


def test_a_changed_deployment_is_placed_anew() -> None:
    fleet = Fleet()
    a = member("a")
    fleet.update([a])
    assert fleet.placement(deployment()).nodes == (a.node_id,)
    other = fleet.placement(deployment(runtime="tflite"))
    assert other.ineligible == ((a.node_id, "it has no runtime 'tflite'"),)


@pytest.mark.parametrize(
    ("cpus", "weight"),
    [
        (8, 8.0),
        (0.5, 1.0),
        (0, 1.0),
        (-3, 1.0),
        (10**9, MAX_PLACEMENT_CPUS),
        (None, 1.0),
        ("many", 1.0),
        ([64], 1.0),
        ({"n": 64}, 1.0),
        (True, 1.0),
        (math.nan, 1.0),
        (math.inf, 1.0),
    ],
)
def test_whatever_a_record_says_of_its_cpus_the_node_can_be_placed(
    cpus: object, weight: float
) -> None:
    """It may not draw more than its share by a number that is none, nor stop others from placing."""
    told, honest = Fleet(), Fleet()
    for number in range(30):
        told.update([member("b"), member("a", cpus=cpus)])
        honest.update([member("b"), member("a", cpus=weight)])
        assert told.placement(deployment(f"m{number}")) == honest.placement(
            deployment(f"m{number}")
        )


@pytest.mark.parametrize("runtimes", [None, "onnx", 7, {"onnx": 1}, [["onnx"], {}, None]])
def test_whatever_a_record_says_of_its_runtimes_it_has_only_those_it_names(
    runtimes: object,
) -> None:
    fleet = Fleet()
    odd, sound = member("odd", runtimes=runtimes), member("sound")
    fleet.update([odd, sound])
    assert fleet.placement(deployment()).ranking == (sound.node_id,)
