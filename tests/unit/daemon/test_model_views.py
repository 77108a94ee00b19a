"""What people are shown of a model's replicas, for what its deployment means for each node."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from msgspec.structs import replace

from meshnode.advertisement import LOAD_KEY, FetchProgress, NodeLoad, advert, encode, replica_key
from meshnode.daemon.model_views import ModelViews
from meshnode.fleet import Part
from meshnode.models.exposure import Exposure, Task, TaskMapping
from meshnode.models.manifest import FileEntry, Manifest
from meshnode.reconcile import OwnReplica
from meshnode.routing.placement import Placement
from meshnode.state.deployment import Deployment
from meshnode.types import NodeId, ReplicaState

if TYPE_CHECKING:
    from meshnode.node import Node

ALPHA, BETA = NodeId("a" * 32), NodeId("b" * 32)


def form(variant: str) -> Manifest:
    files = (FileEntry("model.onnx", 1, variant.ljust(32).encode()),)
    return Manifest("m", 1, "onnx", "onnx", (), (), 0, files, "model.onnx", variant=variant)


PLAIN, SMALL = form(""), form("int8")


class FakeNode:
    """A node that knows what beta says of its replica, and what is meant for beta.

    Attributes:
        told: By the key of beta's state, its value.
        placed: The nodes that are to serve the model.
        offered: How the model is offered.
    """

    me = ALPHA

    def scaling(self, _deployment: object) -> SimpleNamespace:
        return SimpleNamespace(wanted=1)

    def __init__(self, served: Manifest, state: ReplicaState, reason: str = "") -> None:
        digest = served.digest
        self.told = {
            replica_key("m", 1): encode(advert(served, state, digest=digest, reason=reason))
        }
        replica = SimpleNamespace(
            model="m", version=1, node=BETA, node_name="beta", state=state, reason=reason, manifest=served
        )  # fmt: skip
        self.offered = Exposure()
        table = SimpleNamespace(
            models=lambda: {"m": (1,)},
            replicas=lambda _model, _version: (replica,),
            manifests=lambda: (),
            usual=lambda _model: replace(served, exposure=self.offered),
        )
        self.router = SimpleNamespace(table=table)
        self.owners = SimpleNamespace(get=lambda _node, key: self.told.get(key))
        self.desired = SimpleNamespace(entry=lambda _key: None)
        self.placed: tuple[NodeId, ...] = (BETA,)

    def deployment(self, _name: str) -> Deployment:
        return Deployment("m", (PLAIN, SMALL))

    def placement(self, _deployment: Deployment) -> Placement:
        return Placement(self.placed, self.placed, ((ALPHA, "no code"),), 0)

    def parts(self, _name: str) -> list[Part]:
        return [Part({1: ()}, self.placement(self.deployment("m")))]

    def release_view(self, _name: str) -> None:
        return None

    def chosen_digest(self, _name: str, _version: int, node: NodeId) -> str:
        return SMALL.digest if node == BETA else PLAIN.digest

    def is_lasting(self, node: NodeId, _deployment: Deployment) -> bool:
        return node == ALPHA


def view(node: FakeNode) -> dict[str, Any]:
    return ModelViews(cast("Node", node), lambda each: each[:1]).model("m")


def replica(node: FakeNode) -> dict[str, Any]:
    (found,) = view(node)["replicas"]
    return dict(found)


def test_a_form_that_is_meant_for_other_nodes_is_not_current() -> None:
    assert not replica(FakeNode(PLAIN, ReplicaState.READY))["current"]
    assert replica(FakeNode(SMALL, ReplicaState.READY))["current"]


def test_a_replica_says_whether_its_node_is_to_serve_it() -> None:
    node = FakeNode(SMALL, ReplicaState.READY)
    assert replica(node)["placed"]
    node.placed = (ALPHA,)
    assert not replica(node)["placed"]


def test_files_that_failed_to_replace_others_are_told_as_a_failure() -> None:
    own = OwnReplica(PLAIN, ReplicaState.READY, deployed=True)
    own.failed_to_replace(SMALL.digest, "no such operator")
    assert replica(FakeNode(PLAIN, own.state, own.reason))["failure"] == "no such operator"
    own.failed_to_replace("0" * 64, "what was meant before")
    assert replica(FakeNode(PLAIN, own.state, own.reason))["failure"] == ""


def test_what_is_past_fetching_says_nothing_of_it() -> None:
    load = NodeLoad(0.0, 0, fetches=(FetchProgress("m", 1, 92, 100, 0),))
    for served, state, is_told in (
        (SMALL, ReplicaState.READY, False),
        (SMALL, ReplicaState.LOADING, False),
        (SMALL, ReplicaState.FETCHING, True),
        (PLAIN, ReplicaState.READY, True),
    ):
        node = FakeNode(served, state)
        node.told[LOAD_KEY] = encode(load)
        assert (replica(node)["fetch"] is not None) is is_told


def test_a_node_that_cannot_take_it_says_whether_that_lasts() -> None:
    (cannot,) = view(FakeNode(SMALL, ReplicaState.READY))["ineligible"]
    assert (cannot["reason"], cannot["lasting"]) == ("no code", True)


def test_how_a_model_is_offered_is_shown_with_it() -> None:
    node = FakeNode(PLAIN, ReplicaState.READY)
    assert [view(node)[key] for key in ("endpoint", "tasks", "cache")] == [None, [], None]
    node.offered = Exposure("/count-cars", (TaskMapping(Task.CHAT, output="y"),), False)
    shown = [view(node)[key] for key in ("endpoint", "tasks", "cache")]
    assert shown == ["/count-cars", ["chat:output=y"], False]
