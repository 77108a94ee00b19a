from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import structs

from meshnode.deployments import describe, known_of
from meshnode.fleet import Fleet
from meshnode.fleet_node import FleetNode
from meshnode.limits import MAX_PLACEMENT_CPUS
from meshnode.membership.member import Member
from meshnode.membership.messages import MemberRecord
from meshnode.models.manifest import FileEntry, Manifest
from meshnode.state.constraints import Constraints, Resources
from meshnode.state.deployment import Deployment
from meshnode.suitability import NOTHING_SAID, Suitability, failing, mark_of
from meshnode.types import NodeId, NodeState, node_id_of

if TYPE_CHECKING:
    from meshnode.deployments import Known, Target

GIB = 1024**3


def manifest(name: str = "m", runtime: str = "onnx", content: str = "x") -> Manifest:
    files = (FileEntry(content, 1, bytes(32)),)
    return Manifest(name, 1, runtime, runtime, (), (), 0, files, content)


def deployment(name: str = "m", runtime: str = "onnx", content: str = "x") -> Deployment:
    return Deployment(name, (manifest(name, runtime, content),))


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
    assert fleet.want("m", known_of(deployment()))
    placed = fleet.placement(deployment())
    assert ids(a, b) == {*placed.ranking}
    assert fleet.placement(deployment()) is placed
    assert fleet.moved() == {"m"}
    assert not fleet.update([member("a", NodeState.SUSPECT), member("b", disk={"free_bytes": 7})])
    assert fleet.placement(deployment()) is placed
    assert fleet.moved() == set()
    assert repr(fleet) == "<Fleet of 2 nodes, 1 deployments>"
    assert fleet.update([member("a", NodeState.DEAD), b])
    assert fleet.moved() == {"m"}
    assert fleet.placement(deployment()).ineligible == ((a.node_id, "it is dead"),)
    assert fleet.update([a, member("b", region="us")])
    assert fleet.want("m", None)
    assert not fleet.want("m", None)
    assert fleet.moved() == {"m"}
    assert repr(fleet) == "<Fleet of 2 nodes, 0 deployments>"


def test_one_member_that_changed_is_taken_as_if_all_were_looked_at() -> None:
    fleet = Fleet()
    a, b, c = member("a"), member("b"), member("c")
    members = {each.node_id: each for each in (a, b, c)}
    assert fleet.want("m", known_of(deployment()))
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


def test_a_node_that_holds_code_back_is_not_said_to_lack_the_runtime() -> None:
    fleet = Fleet()
    torch = {"torch": {"version": "2.9", "devices": ["cpu"]}}
    a, b = member("a", runtime_details=torch), member("b", NodeState.DEAD)
    fleet.update([a, b])
    code = "it does not allow code of others (its owner may: meshnode join --allow-code)"
    for runtime in ("python", "torch"):
        assert (a.node_id, code) in fleet.placement(deployment(runtime=runtime)).ineligible


def test_only_what_waiting_cannot_change_lasts() -> None:
    fleet = Fleet()
    a, b, c = member("a"), member("b", NodeState.DEAD), member("c", paused="on battery")
    fleet.update([a, b, c])
    made = deployment(runtime="tflite")
    assert [fleet.is_lasting(each.node_id, made) for each in (a, b, c)] == [True, False, False]
    pinned = Deployment("m", made.manifests, 1, (a.node_id,))
    assert [fleet.is_lasting(each.node_id, pinned) for each in (a, b, c)] == [True, True, True]
    assert not fleet.is_lasting(NodeId("unknown"), pinned)


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


# What deployments ask of nodes.


def labelled(name: str, labels: dict[str, str], **capabilities: Any) -> Member:
    plain = member(name, region="eu-west", **capabilities)
    return replace(plain, record=structs.replace(plain.record, labels=labels))


CUDA: dict[str, Any] = {
    "accelerators": [{"kind": "cuda", "name": "RTX", "memory_bytes": 24 * GIB}],
    "runtime_details": {"onnx": {"version": "1", "devices": ["cuda:0", "cpu"]}},
}


def asking(constraints: Constraints, **fields: Any) -> Deployment:
    return structs.replace(deployment(), constraints=constraints, **fields)


@pytest.mark.parametrize(
    ("constraints", "unmet"),
    [
        (Constraints(regions=("eu",)), ""),
        (Constraints(regions=("us", "eu-west")), ""),
        (
            Constraints(regions=("us", "eu-west-1")),
            "it is in region eu-west, and the deployment asks for us or eu-west-1",
        ),
        (Constraints(labels=(("disk", "ssd"),)), ""),
        (
            Constraints(labels=(("disk", "hdd"),)),
            "it has no label disk=hdd, which the deployment asks for",
        ),
        (Constraints(accelerator="any"), ""),
        (Constraints(accelerator="cuda", accelerator_memory_bytes=24 * GIB), ""),
        (
            Constraints(accelerator="rocm"),
            "it has no accelerator of kind rocm, which the deployment asks for",
        ),
        (
            Constraints(accelerator="cuda", accelerator_memory_bytes=40 * GIB),
            "its accelerator has 24 GiB, and the deployment asks for one with 40 GiB",
        ),
        (Constraints(memory_bytes=16 * GIB), ""),
        (
            Constraints(memory_bytes=32 * GIB),
            "it may use 16 GiB of memory, and the deployment asks for 32 GiB",
        ),
        (Constraints(runtime="onnx"), ""),
        (
            Constraints(runtime="torch"),
            "it has no runtime 'torch', which the deployment asks for",
        ),
        (
            Constraints(on_mains=True),
            "it runs on a battery, and the deployment asks for mains power",
        ),
    ],
)
def test_a_node_serves_a_deployment_only_if_it_meets_its_conditions(
    constraints: Constraints, unmet: str
) -> None:
    fleet = Fleet()
    node = labelled("a", {"disk": "ssd"}, memory_bytes=16 * GIB, power="battery", **CUDA)
    fleet.update([node])
    placed = fleet.placement(asking(constraints))
    assert placed.ineligible == (((node.node_id, unmet),) if unmet else ())
    assert placed.nodes == (() if unmet else (node.node_id,))


def test_all_conditions_are_told_that_a_node_does_not_meet() -> None:
    fleet = Fleet()
    node = member("a", power="battery")
    fleet.update([node])
    asked = Constraints(regions=("us",), on_mains=True)
    why = (
        "it is in region eu, and the deployment asks for us; "
        "it runs on a battery, and the deployment asks for mains power"
    )
    assert fleet.placement(asking(asked)).ineligible == ((node.node_id, why),)


@pytest.mark.parametrize("power", ["mains", "unknown"])
def test_what_is_not_known_to_run_on_a_battery_counts_as_on_mains(power: str) -> None:
    fleet = Fleet()
    fleet.update([member("a", power=power)])
    assert fleet.placement(asking(Constraints(on_mains=True))).missing == 0


def test_a_node_that_does_not_say_what_it_has_meets_no_condition_on_it() -> None:
    fleet = Fleet()
    fleet.update([member("a")])
    ((_, reason),) = fleet.placement(asking(Constraints(memory_bytes=GIB))).ineligible
    assert reason == "it does not say what memory it has, and the deployment asks for 1 GiB"
    ((_, reason),) = fleet.placement(asking(Constraints(accelerator="any"))).ineligible
    assert reason == "it has no accelerator, which the deployment asks for"


def test_a_replica_is_charged_what_its_deployment_says_or_what_loading_it_is_estimated_to_take() -> (
    None
):
    fleet = Fleet()
    node = member("a", memory_bytes=4 * GIB)
    fleet.update([node])
    said = Resources(memory_bytes=3 * GIB)
    fleet.want("old", known_of(structs.replace(deployment("old"), resources=said, since_ms=1)))
    fleet.want("new", known_of(structs.replace(deployment("new"), resources=said, since_ms=2)))
    fleet.want("small", known_of(structs.replace(deployment("small"), since_ms=3)))
    assert fleet.moved() == {"old", "new", "small"}
    young = fleet.placement(structs.replace(deployment("new"), resources=said))
    why = (
        "it would take about 3.0 GiB of memory, and of this node's 4.0 GiB only 1.0 GiB are not promised to other "
        "deployments"
    )
    assert young.ineligible == ((node.node_id, why),)
    assert fleet.placement(deployment("small")).missing == 0
    assert fleet.want("old", None)
    assert "new" in fleet.moved()


def test_what_runs_on_an_accelerator_is_charged_to_its_memory() -> None:
    fleet = Fleet()
    fleet.update([member("a", memory_bytes=4 * GIB, **CUDA)])
    for name in ("one", "two"):
        made = structs.replace(deployment(name), resources=Resources(memory_bytes=12 * GIB))
        fleet.want(name, known_of(made))
        assert fleet.placement(made).missing == 0
    third = structs.replace(deployment("z"), resources=Resources(memory_bytes=GIB), since_ms=1)
    ((_, reason),) = fleet.placement(third).ineligible
    assert "GiB of accelerator memory" in reason


def test_an_accelerator_without_memory_of_its_own_takes_the_machines() -> None:
    fleet = Fleet()
    shared: dict[str, Any] = {
        "accelerators": [{"kind": "apple", "memory_bytes": 12 * GIB}],
        "runtime_details": {"onnx": {"version": "1", "devices": ["coreml"]}},
    }
    fleet.update([member("a", memory_bytes=16 * GIB, **shared)])
    first = structs.replace(deployment("one"), resources=Resources(memory_bytes=10 * GIB))
    fleet.want("one", known_of(first))
    python = structs.replace(
        deployment("two"), resources=Resources(memory_bytes=8 * GIB), since_ms=1
    )
    ((_, reason),) = fleet.placement(python).ineligible
    assert "of memory" in reason or "accelerator" in reason
    assert fleet.placement(first).missing == 0


def test_a_paused_deployment_is_placed_nowhere_and_takes_no_memory() -> None:
    fleet = Fleet()
    fleet.update([member("a", memory_bytes=4 * GIB)])
    most = Resources(memory_bytes=4 * GIB)
    paused = structs.replace(deployment("old"), resources=most, enabled=False)
    fleet.want("old", known_of(paused))
    placed = fleet.placement(paused)
    assert (placed.nodes, placed.missing, placed.paused) == ((), 0, True)
    assert describe(placed, str) == "its deployment is paused"
    young = structs.replace(deployment("new"), resources=most, since_ms=1)
    assert fleet.placement(young).missing == 0


def test_how_many_replicas_there_are_to_be_may_follow_something_else() -> None:
    wanted = {"m": 2}
    fleet = Fleet(wanted=lambda each: wanted[each.name])
    fleet.update([member("a"), member("b")])
    made = structs.replace(deployment(), standby=1)
    fleet.want("m", known_of(made))
    assert len(fleet.placement(made).nodes) == 2
    wanted["m"] = 0
    assert fleet.wanted_changed("m")
    assert not fleet.wanted_changed("unknown")
    placed = fleet.placement(made)
    assert (placed.nodes, placed.missing, placed.standby) == ((), 0, ())
    assert len(placed.ranking) == 2
    assert describe(placed, str) == "it is scaled to zero: the next request wakes it up"


# What nodes say of themselves.


def test_a_version_that_keeps_failing_on_a_node_goes_to_another_until_that_is_over() -> None:
    fleet = Fleet()
    a, b = member("a"), member("b")
    fleet.update([a, b])
    made = deployment()
    fleet.want("m", known_of(made))
    (first,) = fleet.placement(made).nodes
    said = Suitability((failing("m", 1, manifest().digest, "the disk is full"),))
    assert fleet.said(first, said)
    assert not fleet.said(first, said)
    moved = fleet.placement(made)
    assert {*moved.nodes} == ids(a, b) - {first}
    assert moved.ineligible == (
        (first, "it could not be loaded there, several times: the disk is full"),
    )
    assert fleet.is_lasting(first, made)
    # Other files are another matter, and so are other models.
    assert fleet.placement(deployment(content="other")).ineligible == ()
    assert fleet.said(first, NOTHING_SAID)
    assert fleet.placement(made).nodes == (first,)


def test_what_a_node_said_is_forgotten_with_it() -> None:
    fleet = Fleet()
    a = member("a")
    fleet.update([a])
    made = deployment()
    said = Suitability((failing("m", 1, manifest().digest, "no"),))
    fleet.said(a.node_id, said)
    assert fleet.placement(made).missing == 1
    fleet.drop(a.node_id)
    fleet.update([a])
    assert fleet.placement(made).missing == 0


def test_of_about_equal_nodes_the_one_that_has_the_files_is_taken() -> None:
    """It saves the transfer; a node that is far better is taken all the same, so balance is kept."""
    fleet = Fleet()
    nodes = [member(f"n{number}") for number in range(6)]
    fleet.update(nodes)
    kept = changed = 0
    for number in range(60):
        made = deployment(f"m{number}")
        first, second, *_ = fleet.placement(made).ranking
        fleet.said(second, Suitability(files=frozenset({mark_of(made.manifests[0].digest)})))
        (taken,) = fleet.placement(made).nodes
        assert taken in (first, second)
        kept, changed = kept + (taken == first), changed + (taken == second)
        # Who is in a placement stays in it, as it has the files itself.
        fleet.said(taken, Suitability(files=frozenset({mark_of(made.manifests[0].digest)})))
        assert fleet.placement(made).nodes == (taken,)
        for each in nodes:
            fleet.said(each.node_id, NOTHING_SAID)
    assert kept > 10
    assert changed > 10


def test_all_nodes_place_alike_whatever_they_heard_first() -> None:
    nodes = [member(f"n{number}", memory_bytes=(2 + number % 3) * GIB) for number in range(9)]
    wanted = [
        structs.replace(
            deployment(f"m{number}"),
            replicas=1 + number % 3,
            standby=number % 2,
            since_ms=number % 4,
            resources=Resources(memory_bytes=GIB),
        )
        for number in range(12)
    ]
    said = Suitability((failing("m3", 1, manifest("m3").digest, "no"),))
    rng = random.Random(1)
    seen = []
    members = {each.node_id: each for each in nodes}
    for _ in range(5):
        fleet = Fleet()
        steps: list[Member | Deployment] = [*wanted, *nodes]
        rng.shuffle(steps)
        for step in steps:
            if isinstance(step, Member):
                fleet.take(step, members)
            else:
                fleet.want(step.name, known_of(step))
            if rng.random() < 0.3:
                fleet.moved()
        fleet.said(nodes[3].node_id, said)
        seen.append([fleet.placement(each) for each in wanted])
    assert all(each == seen[0] for each in seen)


def test_a_thousand_nodes_and_a_hundred_deployments_are_placed_anew_from_what_is_known() -> None:
    """What has not changed is not looked at again: of 20,000 pairs only the new node's."""
    nodes = [member(f"n{number}") for number in range(200)]
    fleet = Fleet()
    fleet.update(nodes)
    for number in range(100):
        fleet.want(f"m{number}", known_of(deployment(f"m{number}")))
    fleet.moved()
    looks = 0
    before = FleetNode.why_not

    def counted(self: FleetNode, known: Known) -> tuple[str, list[Target]]:
        nonlocal looks
        looks += 1
        return before(self, known)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FleetNode, "why_not", counted)
        fleet.update([*nodes, member("new")])
        fleet.moved()
    assert looks == 100
