"""What programs that follow the mesh are told of what the cores report."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.advertisement import advert, encode, replica_key
from meshnode.daemon.event_feed import EventFeed
from meshnode.effects import Emit
from meshnode.models.manifest import Manifest
from meshnode.types import NodeId, ReplicaState

if TYPE_CHECKING:
    from collections.abc import Callable

BETA = NodeId("b" * 32)
KEY = replica_key("digits", 1)
MANIFEST = Manifest("digits", 1, "onnx", "", (), (), 0, (), "")


class Cores:
    """As much of a node as a feed looks at."""

    def __init__(self) -> None:
        self.me = NodeId("a" * 32)
        self.deployed: set[str] = set()
        self.states: dict[tuple[NodeId, str], bytes] = {}
        self.news = True
        self.rollouts = SimpleNamespace(
            heard=lambda emit: self.news,
            brief=lambda name: {"phase": "running", "step": 2, "share": 0.2, "outcome": None},
        )
        self.owners = SimpleNamespace(get=lambda node, key: self.states.get((node, key)))

    def deployment(self, name: str) -> object | None:
        return name if name in self.deployed else None

    def say(self, state: ReplicaState, reason: str = "") -> None:
        told = advert(MANIFEST, state, digest="", reason=reason)
        self.states[BETA, KEY] = encode(told)


@pytest.fixture
def cores() -> Cores:
    return Cores()


@pytest.fixture
def feed(cores: Cores) -> EventFeed:
    clock: Any = SimpleNamespace(wall_s=lambda: 1.0)
    node: Any = cores
    rollouts: Any = cores.rollouts
    return EventFeed(node, clock, lambda node: "beta" if node == BETA else node, rollouts)


@pytest.fixture
def told(feed: EventFeed) -> Callable[[], Any]:
    async def read() -> list[dict[str, Any]]:
        parts: Any = feed.events.stream(None, follow=False).parts
        texts = [each.decode() async for each in parts if not each.startswith(b":")]
        return [json.loads(text.split("data: ")[1]) for text in texts]

    return read


async def test_members_are_told_of_by_name(feed: EventFeed, told: Callable[[], Any]) -> None:
    for kind in (
        "member.alive",
        "member.refused",
        "member.dropped",
        "member.dead",
        "state.refused",
    ):
        feed.heard(Emit(kind, BETA, "because"))
    assert [each["state"] for each in await told()] == ["alive", "dead"]
    assert (await told())[0] == {
        "id": "3e8.1", "kind": "member", "time": "1970-01-01T00:00:01Z", "node": "beta",
        "node_id": BETA, "state": "alive",
    }  # fmt: skip


async def test_deployments_come_and_go_and_keys_are_nobodys_business(
    feed: EventFeed, cores: Cores, told: Callable[[], Any]
) -> None:
    cores.deployed.add("digits")
    feed.heard(Emit("desired.changed", "deployment/digits", BETA))
    feed.heard(Emit("desired.changed", "key/abc", BETA))
    cores.deployed.clear()
    feed.heard(Emit("desired.changed", "deployment/digits", BETA))
    assert [(each["name"], each["change"]) for each in await told()] == [
        ("digits", "written"),
        ("digits", "removed"),
    ]


async def test_a_change_that_was_overwritten_unseen_is_told_with_the_reason(
    feed: EventFeed, told: Callable[[], Any]
) -> None:
    feed.heard(Emit("deployment.overwritten", "digits", "revision 1 by a was overwritten"))
    (event,) = await told()
    assert (event["kind"], event["name"], event["change"]) == (
        "deployment",
        "digits",
        "overwritten",
    )
    assert event["reason"] == "revision 1 by a was overwritten"


async def test_a_replica_is_told_of_when_its_state_changes(
    feed: EventFeed, cores: Cores, told: Callable[[], Any]
) -> None:
    for state, reason in (
        (ReplicaState.LOADING, ""),
        (ReplicaState.LOADING, ""),
        (ReplicaState.READY, ""),
        (ReplicaState.FAILED, "no memory"),
    ):
        cores.say(state, reason)
        feed.replicas_changed([(BETA, KEY)])
    cores.states[BETA, KEY] = b"\xc1"  # what nobody can read is no replica
    feed.replicas_changed([(BETA, KEY), (BETA, KEY), (BETA, "load")])
    found = await told()
    assert [(each["state"], each["reason"]) for each in found] == [
        ("loading", ""),
        ("ready", ""),
        ("failed", "no memory"),
        ("gone", ""),
    ]
    assert (found[0]["model"], found[0]["version"], found[0]["node"]) == ("digits", 1, "beta")


async def test_the_nodes_own_pauses_are_told(feed: EventFeed, told: Callable[[], Any]) -> None:
    feed.heard(Emit("node.paused", "a" * 32, "on battery"))
    feed.heard(Emit("node.resumed", "a" * 32))
    assert [(each["state"], each["reason"]) for each in await told()] == [
        ("paused", "on battery"),
        ("resumed", ""),
    ]
    assert "2 so far" in repr(feed)


async def test_what_is_decided_about_a_release_is_told_once_with_where_it_stands(
    feed: EventFeed, cores: Cores, told: Callable[[], Any]
) -> None:
    feed.heard(Emit("release.step", "digits", "step 2 of 3"))
    cores.news = False
    feed.heard(Emit("release.heard", "digits", "running: step 2 of 3"))
    (event,) = await told()
    assert {
        key: event[key] for key in ("name", "change", "decision", "reason", "phase", "step")
    } == {
        "name": "digits",
        "change": "release",
        "decision": "step",
        "reason": "step 2 of 3",
        "phase": "running",
        "step": 2,
    }
