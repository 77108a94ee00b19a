from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from meshnode.errors import ModelNotFound, NoReplica
from meshnode.models.exposure import Exposure
from meshnode.routing import table as table_module
from meshnode.routing.conditions import NodeConditions
from meshnode.routing.table import Goal, Replica, ReplicaTable
from meshnode.types import NodeId, NodeState, ReplicaState

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.models.manifest import Manifest

    MakeReplica = Callable[..., Replica]

ALPHA, BETA = NodeId("alpha"), NodeId("beta")


def ready_nodes(table: ReplicaTable, version: int = 1) -> list[str]:
    group = table.group("digits", version)
    return [replica.node for replica in group.ready] if group is not None else []


def test_an_unknown_model_is_not_found() -> None:
    with pytest.raises(ModelNotFound, match="no node of this mesh has a model 'digits'"):
        ReplicaTable().resolve("digits", None)


def test_an_unknown_version_is_not_found_and_the_known_ones_are_named(
    make_replica: MakeReplica,
) -> None:
    table = ReplicaTable()
    table.set(make_replica("alpha", version=2))
    table.set(make_replica("alpha", version=1))
    with pytest.raises(ModelNotFound, match="no version 3; there is 1, 2"):
        table.resolve("digits", 3)


def test_no_version_means_the_highest_with_a_ready_replica(make_replica: MakeReplica) -> None:
    table = ReplicaTable()
    table.set(make_replica("alpha", version=1))
    table.set(make_replica("beta", version=2))
    table.set(make_replica("alpha", version=3, state=ReplicaState.LOADING))
    assert table.resolve("digits", None) == 2
    assert table.resolve("digits", 1) == 1
    table.remove(BETA, "digits", 2)
    assert table.resolve("digits", None) == 1


def test_a_known_model_without_a_ready_replica_says_why_for_each(
    make_replica: MakeReplica,
) -> None:
    table = ReplicaTable()
    table.set(make_replica("alpha", state=ReplicaState.FAILED, reason="out of memory"))
    table.set(make_replica("beta"))
    table.node_state(BETA, NodeState.DEAD)
    expected = "alpha: failed: out of memory; beta: node dead"
    for version in (None, 1):
        with pytest.raises(NoReplica, match=expected):
            table.resolve("digits", version)


@pytest.mark.parametrize("state", [state for state in ReplicaState if state != "ready"])
def test_only_ready_replicas_may_serve(state: ReplicaState, make_replica: MakeReplica) -> None:
    table = ReplicaTable()
    table.set(make_replica("alpha"))
    assert ready_nodes(table) == ["alpha"]
    table.set(make_replica("alpha", state=state))
    assert ready_nodes(table) == []


def test_dead_nodes_and_those_that_left_do_not_serve_but_suspects_do(
    make_replica: MakeReplica,
) -> None:
    table = ReplicaTable()
    table.node_state(ALPHA, NodeState.LEFT)  # known before its replicas are
    table.set(make_replica("alpha"))
    table.set(make_replica("beta"))
    assert ready_nodes(table) == ["beta"]
    table.node_state(ALPHA, NodeState.ALIVE)
    assert ready_nodes(table) == ["alpha", "beta"]
    table.node_state(BETA, NodeState.SUSPECT)
    assert ready_nodes(table) == ["alpha", "beta"]
    table.node_state(BETA, NodeState.DEAD)
    table.node_state(BETA, NodeState.DEAD)
    assert ready_nodes(table) == ["alpha"]


def test_removing_the_last_replica_forgets_the_model(make_replica: MakeReplica) -> None:
    table = ReplicaTable()
    table.set(make_replica("alpha"))
    table.set(make_replica("alpha", version=2))
    table.remove(ALPHA, "digits", 2)
    assert table.models() == {"digits": (1,)}
    table.remove(ALPHA, "digits", 1)
    table.remove(ALPHA, "digits", 1)
    assert (table.models(), len(table), table.served_by(ALPHA)) == ({}, 0, ())
    with pytest.raises(ModelNotFound):
        table.resolve("digits", None)


def test_removing_a_node_forgets_its_replicas_and_that_it_was_dead(
    make_replica: MakeReplica,
) -> None:
    table = ReplicaTable()
    for replica in (make_replica("alpha"), make_replica("alpha", version=2), make_replica("beta")):
        table.set(replica)
    table.node_state(ALPHA, NodeState.DEAD)
    table.remove_node(ALPHA)
    assert [replica.node for replica in table.replicas("digits", 1)] == ["beta"]
    assert table.replicas("digits", 2) == ()
    table.set(make_replica("alpha"))
    assert ready_nodes(table) == ["beta", "alpha"]


def test_a_group_changes_its_revision_only_when_something_changed(
    make_replica: MakeReplica,
) -> None:
    table = ReplicaTable()
    table.set(make_replica("alpha"))
    group = table.group("digits", 1)
    assert group is not None
    before = group.revision
    table.set(make_replica("alpha"))
    table.node_state(ALPHA, NodeState.SUSPECT)
    assert group.revision == before
    table.set(make_replica("alpha", slots=4))
    assert group.revision > before


def test_the_manifest_is_that_of_a_ready_replica_if_there_is_one(
    make_replica: MakeReplica, manifest: Manifest
) -> None:
    table = ReplicaTable()
    assert table.manifest("digits", 1) is None
    table.set(make_replica("gamma"))
    assert table.manifest("digits", 1) is None
    table.remove(NodeId("gamma"), "digits", 1)
    table.set(make_replica("alpha", state=ReplicaState.LOADING, manifest=manifest, digest="a"))
    assert table.manifest("digits", 1) is manifest
    other = type(manifest)("digits", 1, "onnx", "p", (), (), 8, (), "model.onnx")
    table.set(make_replica("beta", manifest=other, digest="b"))
    table.set(make_replica("zeta", state=ReplicaState.LOADING, manifest=manifest, digest="a"))
    assert table.manifest("digits", 1) is other


def goal(manifest: Manifest, digest: str = "new", placed: str = "it is placed on alpha") -> Goal:
    return Goal(manifest, digest, placed)


def test_a_deployed_model_without_a_replica_is_known_and_says_where_it_belongs(
    make_replica: MakeReplica, manifest: Manifest
) -> None:
    table = ReplicaTable()
    table.want("digits", {1: goal(manifest), 2: goal(manifest)})
    assert table.models() == {"digits": (1, 2)}
    assert table.manifest("digits", 2) is manifest
    for version in (None, 1, 2):
        with pytest.raises(NoReplica, match="is ready: it is placed on alpha"):
            table.lookup("digits", version)
    with pytest.raises(ModelNotFound, match="no version 3; there is 1, 2"):
        table.lookup("digits", 3)
    table.set(make_replica("alpha", manifest=manifest, digest="new"))
    assert table.resolve("digits", None) == 1
    table.remove_node(ALPHA)
    with pytest.raises(NoReplica):
        table.lookup("digits", None)
    table.want("digits", {3: goal(manifest)})
    assert table.models() == {"digits": (3,)}
    table.want("digits", {})
    table.want("other", {})
    assert table.models() == {}
    with pytest.raises(ModelNotFound):
        table.lookup("digits", None)


def test_what_is_still_served_stays_when_it_is_deployed_no_more(
    make_replica: MakeReplica, manifest: Manifest
) -> None:
    table = ReplicaTable()
    table.set(make_replica("alpha", version=2))
    table.want("digits", {1: goal(manifest)})
    table.want("digits", {})
    assert table.models() == {"digits": (2,)}
    assert table.resolve("digits", None) == 2


def test_only_the_wanted_files_serve_once_one_replica_has_them(
    make_replica: MakeReplica, manifest: Manifest
) -> None:
    table = ReplicaTable()
    old = type(manifest)("digits", 1, "onnx", "p", (), (), 8, (), "model.onnx")
    for node in ("alpha", "beta"):
        table.set(make_replica(node, manifest=old, digest="old"))
    table.want("digits", {1: goal(manifest)})
    assert ready_nodes(table) == ["alpha", "beta"]  # old ones are better than none
    assert table.manifest("digits", 1) is old
    table.set(make_replica("alpha", manifest=manifest, digest="new", state=ReplicaState.LOADING))
    assert (ready_nodes(table), table.manifest("digits", 1)) == (["beta"], old)
    table.set(make_replica("alpha", manifest=manifest, digest="new"))
    assert (ready_nodes(table), table.manifest("digits", 1)) == (["alpha"], manifest)
    group = table.group("digits", 1)
    assert group is not None
    assert [(each.node_name, why) for each, why in group.excluded] == [
        ("beta", "other files under the same version")
    ]
    table.node_state(ALPHA, NodeState.DEAD)
    assert (ready_nodes(table), table.manifest("digits", 1)) == (["beta"], old)


def test_without_a_deployment_the_files_of_most_replicas_serve(make_replica: MakeReplica) -> None:
    table = ReplicaTable()
    table.set(make_replica("beta", digest="b"))
    table.set(make_replica("alpha", digest="a"))
    assert ready_nodes(table) == ["alpha"]  # the smallest of equals
    table.set(make_replica("gamma", digest="b"))
    assert ready_nodes(table) == ["beta", "gamma"]


def test_a_full_table_takes_no_more_but_still_changes_what_it_has(
    make_replica: MakeReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = ReplicaTable()
    monkeypatch.setattr(table_module, "MAX_REPLICAS_PER_NODE", 2)
    assert table.set(make_replica("alpha"))
    assert table.set(make_replica("alpha", version=2))
    assert not table.set(make_replica("alpha", version=3))
    assert table.set(make_replica("alpha", version=2, slots=2))
    monkeypatch.setattr(table_module, "MAX_MODELS", 1)
    assert not table.set(make_replica("beta", model="other"))
    monkeypatch.setattr(table_module, "MAX_TABLE_REPLICAS", 3)
    assert table.set(make_replica("beta"))
    assert not table.set(make_replica("gamma"))
    assert table.models() == {"digits": (1, 2)}


def test_reprs_tell_the_state(make_replica: MakeReplica) -> None:
    table = ReplicaTable()
    table.set(make_replica("alpha", slots=0))
    assert repr(table) == "<ReplicaTable 1 replicas of 1 models>"
    assert repr(table.group("digits", 1)) == "<ReplicaGroup version 1: 1 ready of 1>"
    assert table.replicas("digits", 1)[0].slots == 1


def test_each_model_is_what_its_newest_ready_version_is_or_else_the_highest_known(
    make_replica: MakeReplica, manifest: Manifest
) -> None:
    table = ReplicaTable()
    before = table.revision
    for version, state in ((1, ReplicaState.READY), (2, ReplicaState.LOADING)):
        what = replace(manifest, version=version)
        table.set(make_replica("alpha", version=version, state=state, manifest=what))
    assert [each.version for each in table.manifests()] == [1]
    assert table.revision > before
    table.node_state(ALPHA, NodeState.DEAD)
    assert [each.version for each in table.manifests()] == [2]
    table.remove_node(ALPHA)
    assert list(table.manifests()) == []


def test_during_a_release_a_model_is_what_the_version_is_that_serves_meanwhile(
    make_replica: MakeReplica, manifest: Manifest
) -> None:
    table = ReplicaTable()
    assert table.usual("digits") is None
    for version in (1, 2):
        what = replace(manifest, version=version)
        table.set(make_replica("alpha", version=version, manifest=what))
    table.set(
        make_replica("alpha", version=3, state=ReplicaState.LOADING)
    )  # nobody said what it is

    def usual() -> int | None:
        found = table.usual("digits")
        return found.version if found is not None else None

    assert usual() == 2
    table.prefer("digits", 1)
    assert usual() == 1
    table.remove(ALPHA, "digits", 1)
    assert usual() == 2
    table.node_state(ALPHA, NodeState.DEAD)
    assert usual() == 2


def test_other_files_are_offered_as_the_deployment_says_until_its_own_serve(
    make_replica: MakeReplica, manifest: Manifest
) -> None:
    table = ReplicaTable()
    old, new = Exposure("/old"), Exposure("/new")
    table.set(make_replica("alpha", manifest=replace(manifest, exposure=old), digest="a"))
    found = table.manifest("digits", 1)
    assert found is not None
    assert found.exposure == old
    wanted = replace(manifest, exposure=new)
    table.want("digits", {1: Goal(wanted, "b", "placed")})
    found = table.manifest("digits", 1)
    assert found is not None
    assert found.exposure == new


def test_of_nodes_that_offer_the_same_files_otherwise_the_smallest_id_counts(
    make_replica: MakeReplica, manifest: Manifest
) -> None:
    for order in (("alpha", "beta"), ("beta", "alpha")):
        table = ReplicaTable()
        for name in order:
            told = replace(manifest, exposure=Exposure(f"/{name}"))
            table.set(make_replica(name, manifest=told, digest="a"))
        found = table.manifest("digits", 1)
        assert found is not None
        assert found.exposure.path == "/alpha"


def test_conditions_make_a_group_another_without_a_look_at_its_replicas(
    make_replica: MakeReplica,
) -> None:
    table = ReplicaTable()
    table.set(make_replica("alpha"))
    table.set(make_replica("beta"))
    group = table.lookup("digits", 1)
    before, ready = group.revision, group.ready
    table.conditions_changed(ALPHA, NodeConditions(throttled=True))
    assert group.revision not in (before, 0)
    assert group.ready is ready
    table.node_state(BETA, NodeState.DEAD)
    assert group.ready is not ready, "that is worked out anew when it has to be"
    again = group.revision
    table.conditions_changed(ALPHA, NodeConditions(throttled=True))
    assert group.revision == again, "nothing has changed"


def test_a_paused_deployment_is_served_by_nobody_and_says_how_to_resume_it(
    make_replica: MakeReplica, manifest: Manifest
) -> None:
    table = ReplicaTable()
    table.set(make_replica("a"))
    table.want(
        "digits", {1: Goal(manifest, manifest.digest, "its deployment is paused", is_paused=True)}
    )
    for version in (None, 1):
        with pytest.raises(NoReplica, match=r"is paused.*meshnode resume digits"):
            table.lookup("digits", version)
        assert table.coming("digits", version) is None  # so nobody waits for a replica of it
    assert table.models() == {"digits": (1,)}
    table.want("digits", {1: Goal(manifest, manifest.digest, "a", digests=frozenset({""}))})
    assert table.lookup("digits", None).version == 1


def test_the_goal_says_which_replicas_stand_by(make_router: Any, manifest: Manifest) -> None:
    router = make_router("a", "b")
    goal = Goal(manifest, "", "a", standby=frozenset({NodeId("b")}))
    router.wanted_changed("digits", {1: goal})
    found = router.candidates("digits", None)
    assert {each.replica.node: each.conditions.standby for each in found.ready} == {
        "a": False,
        "b": True,
    }
    router.wanted_changed("digits", {1: Goal(manifest, "", "b")})
    assert not any(each.conditions.standby for each in router.candidates("digits", 1).ready)
