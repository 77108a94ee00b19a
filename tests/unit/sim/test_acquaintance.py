from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.sim import faults
from meshnode.sim.acquaintance import acquaint
from meshnode.sim.core_stage import MAX_MEETING, CoreStage
from meshnode.sim.mesh import SimMesh
from meshnode.sim.scenario.model import Model, Nodes, Place, Scenario

if TYPE_CHECKING:
    from meshnode.node import Node

NAMES = [f"n{number}" for number in range(10)]


def met() -> SimMesh:
    """Return a mesh whose nodes met for the first time, and had time to rest."""
    mesh = SimMesh(seed=5)
    for name in NAMES:
        mesh.add(name, "eu")
    mesh.run_for(30.0)
    return mesh


def introduced() -> SimMesh:
    mesh = SimMesh(seed=5)
    for name in NAMES:
        mesh.add(name, "eu", is_acquainted=True)
    mesh.run_for(0.0)
    acquaint(mesh, NAMES)
    mesh.run_for(30.0)
    return mesh


def knowledge(node: Node) -> dict[str, object]:
    """Return all that a node knows of others, but for what it measures itself."""
    membership, owners = node.membership, node.owners
    table, linking = membership._table, membership._linking
    return {
        "view": table.root(),
        "members": {
            node_id: (member.record, member.state, member.linked)
            for node_id, member in membership.members.items()
        },
        "live": {*table.live},
        "buckets": [{*bucket} for bucket in table._buckets],
        "ranked": linking._ranked,
        "wanted": {*linking.wanted()},
        "fleet": node._fleet._nodes,
        "faces": node._directory._routed,
        "conditions": {
            each: node.router.table.conditions(each) for each in node.membership.members
        },
        "roster": {member.node_id: member.chain for member in node._authority.roster},
        "owners": (owners._root, {*owners.owners()}),
        "states": {owner: copy.signature for owner, copy in owners._copies.items()},
        "desired": [*node.desired.items()],
    }


def test_acquaintances_know_exactly_what_nodes_know_that_have_met() -> None:
    real, given = met(), introduced()
    for name in NAMES:
        assert knowledge(given.node(name)) == knowledge(real.node(name))
        assert given.world.disk_of(name).keys() == real.world.disk_of(name).keys()


def test_no_node_shares_a_table_with_another() -> None:
    mesh = introduced()
    mesh.crash("n3")
    mesh.run_for(0.0)
    one, other = mesh.node("n1"), mesh.node("n2")
    one.membership._table.remove(mesh.world.id_of("n4"))
    assert mesh.world.id_of("n4") in other.membership.members


def test_a_large_scenario_starts_at_once_and_lives_as_any_other() -> None:
    count = MAX_MEETING + 12
    scenario = Scenario(
        name="large",
        regions={"dub": Place()},
        nodes=(Nodes(region="dub", count=count, name="n"),),
        models=(Model(name="digits", replicas=3, load_s=0.1),),
    )
    stage = CoreStage(scenario, 1)
    stage.start(lambda _text: None)
    assert {each.alive for each in stage.sample().nodes.values()} == {count}
    assert len(stage.mesh.serving("digits")) == 3
    crash = faults.Crash(nodes=("n-7",))
    stage.apply(crash)
    stage.run_to(stage.now() + 30.0)
    assert stage.sample().nodes["n-1"].alive == count - 1
    stage.undo(crash)
    stage.settle(60.0)
    stage.close()
    stage.close()  # any number of times


def test_a_stage_gives_the_garbage_collector_back_what_it_took() -> None:
    import gc

    before = gc.get_threshold()
    scenario = Scenario(
        name="large",
        regions={"dub": Place()},
        nodes=(Nodes(region="dub", count=MAX_MEETING + 1, name="n"),),
    )
    stage = CoreStage(scenario, 1)
    stage.start(lambda _text: None)
    assert gc.get_freeze_count() > 0
    stage.close()
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
