"""Two admins edit one deployment while the mesh is cut in two: the last wins, and everybody is told who lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.state.deployment_history import overwritten, revisions
from tests.unit.sim.test_mesh import DIGITS, build

if TYPE_CHECKING:
    from meshnode.sim.mesh import SimMesh

NAMES = ("a", "b", "c", "d")


def losses(mesh: SimMesh) -> dict[str, list[str]]:
    """Return what each node was told of overwritten changes."""
    found: dict[str, list[str]] = {}
    for name in NAMES:
        events = mesh.world.trace.find("deployment.overwritten", name, "digits")
        found[name] = [each.detail for each in events]
    return found


def summaries(mesh: SimMesh, name: str) -> list[tuple[int, bool]]:
    """Return the replicas that each kept revision asks for, newest first, and whether it was overwritten unseen."""
    kept = revisions(mesh.node(name).desired, "digits")
    lost = overwritten(kept)
    return [(each.deployment.replicas if each.deployment else 0, each.id in lost) for each in kept]


def test_edits_on_both_sides_of_a_partition_end_alike_and_the_loser_is_told_on_every_node() -> None:
    mesh = build(*NAMES)
    mesh.deploy("a", DIGITS, replicas=1)
    mesh.run_for(5.0)
    mesh.world.partition(["a", "b"], ["c", "d"])
    mesh.run_for(2.0)
    mesh.deploy("a", DIGITS, replicas=2)
    mesh.run_for(1.0)
    mesh.deploy("c", DIGITS, replicas=3)
    mesh.run_for(10.0)
    assert losses(mesh) == {name: [] for name in NAMES}, "nobody knows of both yet"
    mesh.world.heal()
    mesh.run_until(lambda: all(len(each) == 1 for each in losses(mesh).values()), limit_s=60.0)
    assert len({each[0] for each in losses(mesh).values()}) == 1
    (sentence,) = losses(mesh)["a"]
    assert "by a was overwritten unseen by revision" in sentence
    assert sentence.endswith("by c")
    for name in NAMES:
        assert summaries(mesh, name) == [(3, False), (2, True), (1, False)]
    mesh.deploy("b", DIGITS, replicas=4)
    mesh.run_for(10.0)
    assert all(len(each) == 1 for each in losses(mesh).values()), "it is told once"
    assert summaries(mesh, "d")[0] == (4, False)


def test_a_deletion_that_did_not_know_of_a_change_is_told_and_the_change_can_be_restored() -> None:
    mesh = build(*NAMES)
    mesh.deploy("a", DIGITS, replicas=1)
    mesh.run_for(5.0)
    mesh.world.partition(["a", "b"], ["c", "d"])
    mesh.run_for(2.0)
    mesh.deploy("a", DIGITS, replicas=2)
    mesh.run_for(1.0)
    mesh.undeploy("c", "digits")
    mesh.run_for(10.0)
    mesh.world.heal()
    mesh.run_until(lambda: all(len(each) == 1 for each in losses(mesh).values()), limit_s=60.0)
    assert all(mesh.node(name).deployment("digits") is None for name in NAMES)
    assert summaries(mesh, "b") == [(0, False), (2, True), (1, False)]


def test_edits_in_a_whole_mesh_overwrite_nothing_unseen() -> None:
    mesh = build(*NAMES)
    for turn in range(12):
        mesh.deploy(NAMES[turn % 4], DIGITS, replicas=1 + turn % 3)
        mesh.run_for(3.0)
    assert losses(mesh) == {name: [] for name in NAMES}
    assert len(summaries(mesh, "d")) == 12
