"""Stories of placement in virtual time: pauses, memory, standbys, nodes that cannot load."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from meshnode.reconcile import GIVE_UP_AFTER, GIVE_UP_FIRST_S
from meshnode.sim.mesh import SimMesh
from meshnode.sim.model_behaviour import ModelBehaviour
from meshnode.sim.network import NetworkConfig
from meshnode.sim.serving import sim_manifest
from meshnode.state.constraints import Constraints, Resources

if TYPE_CHECKING:
    from typing import Any

DIGITS = sim_manifest("digits")
WIRES = NetworkConfig(rtt_s={("eu", "us"): 0.08, ("eu", "asia"): 0.2, ("us", "asia"): 0.15})
REGIONS = ("eu", "us", "asia")
GIB = 1024**3


def build(*names: str, seed: int = 1, **fields: Any) -> SimMesh:
    """Return a mesh whose nodes have found each other, in three regions by turns."""
    mesh = SimMesh(seed, WIRES)
    for index, name in enumerate(names):
        mesh.add(name, REGIONS[index % 3], **fields)
    mesh.run_for(8.0)
    return mesh


def change(mesh: SimMesh, by: str, model: str, **fields: Any) -> None:
    """Change what is deployed."""
    deployment = mesh.node(by).deployment(model)
    assert deployment is not None
    changed = structs.replace(deployment, **fields)
    mesh.write(by, lambda drafts, wall_s: drafts.deployment(changed, wall_s))


def ineligible(mesh: SimMesh, seen_by: str, model: str) -> dict[str, str]:
    node = mesh.node(seen_by)
    deployment = node.deployment(model)
    assert deployment is not None
    found = node.placement(deployment).ineligible
    return {mesh.name_of(each): reason for each, reason in found}


def standby(mesh: SimMesh, model: str = "digits") -> list[str]:
    views = set()
    for name in mesh.world.running():
        node = mesh.node(name)
        deployment = node.deployment(model)
        assert deployment is not None
        views.add(node.placement(deployment).standby)
    (view,) = views
    return [mesh.name_of(each) for each in view]


def test_a_paused_deployment_serves_nothing_says_so_and_goes_on_when_it_is_resumed() -> None:
    mesh = build("a", "b", "c")
    mesh.deploy("a", DIGITS, replicas=2)
    mesh.run_for(5.0)
    assert len(mesh.serving("digits")) == 2
    change(mesh, "b", "digits", enabled=False)
    mesh.run_for(5.0)
    assert mesh.serving("digits") == []
    asked = mesh.request("c", "digits", timeout_s=5.0)
    mesh.run_for(1.0)  # nobody waits for a replica that will not come
    assert asked.outcome == "no_replica"
    assert "digits" in mesh.node("c").router.table.models()
    change(mesh, "c", "digits", enabled=True)
    mesh.run_for(5.0)
    assert len(mesh.serving("digits")) == 2
    asked = mesh.request("a", "digits")
    mesh.run_for(2.0)
    assert asked.ok
    mesh.finish()


def test_what_has_no_room_waits_until_an_older_deployment_makes_some() -> None:
    mesh = build("a", "b", memory_bytes=4 * GIB)
    takes = Resources(memory_bytes=3 * GIB)
    for name in ("one", "two", "three"):
        mesh.deploy("a", sim_manifest(name), replicas=1, resources=takes)
        mesh.run_for(5.0)
    homes = [*mesh.serving("one"), *mesh.serving("two")]
    assert sorted(homes) == ["a", "b"]
    assert mesh.serving("three") == []
    why = (
        "it would take about 3.0 GiB of memory, and of this node's 4.0 GiB only 1.0 GiB are not promised to other "
        "deployments"
    )
    assert ineligible(mesh, "b", "three") == {"a": why, "b": why}
    mesh.undeploy("b", "one")
    mesh.run_for(10.0)
    # The older of the two may move into the room that it was turned away from; the younger takes what is left.
    assert sorted([*mesh.serving("two"), *mesh.serving("three")]) == ["a", "b"]
    mesh.finish()


def test_a_model_is_kept_in_the_regions_and_on_the_power_that_it_asks_for() -> None:
    mesh = build("a", "b", "c", "d")
    mesh.deploy("a", DIGITS, replicas=4, constraints=Constraints(regions=("eu",)))
    mesh.run_for(5.0)
    assert sorted(mesh.serving("digits")) == ["a", "d"]
    assert ineligible(mesh, "c", "digits") == {
        "b": "it is in region us, and the deployment asks for eu",
        "c": "it is in region asia, and the deployment asks for eu",
    }
    change(mesh, "a", "digits", constraints=Constraints(regions=("us", "asia")))
    load = mesh.load(["a"], "digits", rate_per_s=20.0, duration_s=20.0)
    mesh.run_for(25.0)
    assert sorted(mesh.serving("digits")) == ["b", "c"]
    mesh.finish()
    assert load.failed == []


def test_a_replica_on_standby_is_asked_nothing_until_the_others_die_and_then_at_once() -> None:
    mesh = build("a", "b", "c", "d", "e", "f")
    mesh.behave(DIGITS, ModelBehaviour(fetch_s=20.0, load_s=20.0))
    mesh.deploy("a", DIGITS, replicas=1, standby=1)
    mesh.run_for(60.0)
    (home,), (spare,) = mesh.placed("digits"), standby(mesh)
    regions = {name: mesh.node(name).membership.record.region for name in "abcdef"}
    assert regions[home] != regions[spare]
    assert sorted(mesh.serving("digits")) == sorted([home, spare])
    gateway = next(
        name for name in "abcdef" if name not in (home, spare) and regions[name] != regions[home]
    )
    load = mesh.load([gateway], "digits", rate_per_s=20.0, duration_s=100.0)
    mesh.run_for(20.0)
    assert {mesh.name_of(each.served_by) for each in load.requests if each.ok} == {home}
    for name in [name for name in "abcdef" if regions[name] == regions[home]]:
        mesh.crash(name)
    mesh.run_for(10.0)
    answered = [each for each in load.requests if each.ok]
    assert mesh.name_of(answered[-1].served_by) == spare
    # It is a replica like any other then, and another node has begun to stand by.
    assert mesh.placed("digits") == [spare]
    (next_spare,) = standby(mesh)
    mesh.run_for(70.0)
    assert sorted(mesh.serving("digits")) == sorted([spare, next_spare])
    mesh.finish()
    assert load.failed == []


def test_a_node_that_cannot_load_is_left_out_for_a_while_and_says_why() -> None:
    mesh = build("a", "b", "c", "d")
    mesh.deploy("a", DIGITS, replicas=1)
    mesh.run_for(5.0)
    (full,) = mesh.placed("digits")
    mesh.undeploy("a", "digits")
    mesh.run_for(5.0)
    mesh.device(full).faults.load_error = "the disk is full"
    mesh.deploy("a", DIGITS, replicas=1)
    mesh.run_for(30.0)
    (home,) = mesh.placed("digits")
    assert home != full
    assert mesh.serving("digits") == [home]
    assert mesh.daemon(full).host.loaded.count(("digits", 1)) == 1 + GIVE_UP_AFTER
    for name in "abcd":  # all nodes know, and decide alike
        assert ineligible(mesh, name, "digits") == {
            full: "it could not be loaded there, several times: the disk is full"
        }
    # The node is willing again after a while; as long as it fails, whoever serves goes on.
    load = mesh.load(["a"], "digits", rate_per_s=5.0, duration_s=GIVE_UP_FIRST_S + 60.0)
    mesh.run_for(GIVE_UP_FIRST_S + 20.0)
    assert mesh.daemon(full).host.loaded.count(("digits", 1)) == 2 + GIVE_UP_AFTER
    assert mesh.serving("digits") == [home]
    mesh.device(full).faults.load_error = ""
    mesh.run_for(2 * GIVE_UP_FIRST_S)
    assert mesh.placed("digits") == mesh.serving("digits") == [full]
    mesh.finish()
    assert load.failed == []


def test_nodes_say_whose_files_they_have_after_a_restart_too() -> None:
    mesh = build("a", "b", "c")
    mesh.deploy("a", DIGITS, replicas=2)
    mesh.run_for(5.0)
    holders = {*mesh.serving("digits")}
    assert "c" in holders
    mesh.crash("c")
    mesh.world.restart("c")
    mesh.run_for(10.0)
    for name in "abc":
        node = mesh.node(name)
        told = {mesh.name_of(each) for each, said in node._fleet._said.items() if said.files}
        assert told == holders
    mesh.finish()


def test_what_moves_into_anothers_memory_waits_until_that_is_free() -> None:
    mesh = build("a", "b", memory_bytes=4 * GIB)
    takes = Resources(memory_bytes=3 * GIB)
    first, second = sim_manifest("first"), sim_manifest("second")
    mesh.behave(first, ModelBehaviour(fetch_s=3.0, load_s=3.0))
    mesh.deploy("a", first, resources=takes)
    mesh.run_for(12.0)
    (home,) = mesh.serving("first")
    (other,) = {"a", "b"} - {home}
    load = mesh.load([other], "first", rate_per_s=10.0, duration_s=30.0)
    mesh.deploy("a", second, on=[home], resources=takes)
    for _ in range(300):
        mesh.run_for(0.1)
        assert len({model for model, _ in mesh.daemon(home).host._served}) <= 1
    assert (mesh.serving("first"), mesh.serving("second")) == ([other], [home])
    mesh.finish()
    assert load.failed == []


def test_two_nodes_that_are_to_exchange_their_replicas_do_not_wait_for_each_other_for_ever() -> (
    None
):
    mesh = build("a", "b", memory_bytes=4 * GIB)
    takes = Resources(memory_bytes=3 * GIB)
    for name, home in (("first", "a"), ("second", "b")):
        mesh.deploy("a", sim_manifest(name), on=[home], resources=takes)
    mesh.run_for(5.0)
    load = mesh.load(["a"], "first", rate_per_s=10.0, duration_s=80.0)
    change(mesh, "a", "first", on=(mesh.node("b").me,))
    change(mesh, "a", "second", on=(mesh.node("a").me,))
    mesh.run_for(30.0)
    assert (mesh.serving("first"), mesh.serving("second")) == (["a"], ["b"])
    mesh.run_for(60.0)
    assert (mesh.serving("first"), mesh.serving("second")) == (["b"], ["a"])
    mesh.finish()
    assert load.failed == []
