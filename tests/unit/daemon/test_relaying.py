"""What a daemon does about peers that it cannot dial; the links themselves are stand-ins."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest

from meshnode.daemon import relaying as relaying_module
from meshnode.daemon.relaying import Relaying
from meshnode.errors import LinkLost
from meshnode.events import DialFailed, LinkDown, LinkUp
from meshnode.limits import (
    DIRECT_RETRY_S,
    MAX_RELAYS_ASKED,
    RELAY_AFTER_S,
    RELAY_ANSWERS_S,
    RELAY_DISTRUST_S,
    RELAY_RETRY_S,
    RELAY_REVIEW_S,
)
from meshnode.net.relay_faults import RelayFaults
from meshnode.types import Address, NodeId

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from meshnode.clock import Clock
    from meshnode.net.connection import Connection
    from meshnode.net.links import LinkHub
    from meshnode.node import Node

PEER, NEAR, FAR, NEW = (NodeId(name) for name in ("peer", "near", "far", "new"))
PLACE = Address("192.0.2.1", 8471)


@dataclass
class Clock0:
    time: float = 100.0

    def now(self) -> float:
        return self.time


@dataclass
class Hub:
    """Links as a table: by peer, through whom (None: directly)."""

    links: dict[NodeId, NodeId | None] = field(default_factory=dict)
    silent: set[NodeId] = field(default_factory=set)
    rtts_s: dict[NodeId, float] = field(default_factory=dict)
    relay_faults: RelayFaults = field(default_factory=RelayFaults)
    dialled: list[NodeId] = field(default_factory=list)
    answers: dict[NodeId, bool] = field(
        default_factory=dict
    )  # a dial of it; who is missing is mute

    def peers(self) -> list[NodeId]:
        return list(self.links)

    def relay(self, peer: NodeId) -> NodeId | None:
        return self.links.get(peer)

    def connection(self, peer: NodeId) -> str | None:
        return f"link to {peer}" if peer in self.links and peer not in self.silent else None

    def rtt_s(self, peer: NodeId) -> float | None:
        return self.rtts_s.get(peer)

    def dial(self, _addresses: Sequence[Address], peer: NodeId, _kinds: object) -> None:
        self.dialled.append(peer)

    async def connect(self, _addresses: Sequence[Address], peer: NodeId, _kinds: object) -> str:
        if peer not in self.answers:
            await asyncio.get_running_loop().create_future()
        if not self.answers[peer]:
            raise LinkLost("nobody is there")
        self.links[peer] = None
        return f"direct link to {peer}"


@dataclass
class Links:
    """Stands for `RelayedLinks`: knows who relays, and notes who was asked."""

    hub: Hub
    willing: set[NodeId] = field(default_factory=set)
    asked: list[tuple[NodeId, ...]] = field(default_factory=list)

    async def connect(self, peer: NodeId, relays: Sequence[NodeId], _within_s: float = 0.0) -> str:
        self.asked.append(tuple(relays))
        for relay in relays:
            if relay in self.willing:
                self.hub.links[peer] = relay
                self.hub.silent.discard(peer)
                return f"link through {relay}"
        raise LinkLost("nobody relays")


@dataclass
class Record:
    addresses: tuple[tuple[str, int], ...] = (PLACE,)
    name: str = "somebody"


@dataclass
class Member:
    live: bool = True
    record: Record = field(default_factory=Record)


@dataclass
class Mesh:
    """Stands for membership and the node around it."""

    members: dict[NodeId, Member] = field(default_factory=dict)
    near: list[NodeId] = field(default_factory=list)
    rtts_s: dict[NodeId, float] = field(default_factory=dict)
    needed: set[NodeId] = field(default_factory=lambda: {PEER})
    record: Record = field(default_factory=Record)

    @property
    def membership(self) -> Mesh:
        return self

    def neighbours_of(self, _peer: NodeId) -> list[NodeId]:
        return self.near

    def rtt_s(self, relay: NodeId, _peer: NodeId) -> float | None:
        return self.rtts_s.get(relay)


class Scene:
    """A node with links to `near` and `far`, that needs `peer`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hub = Hub({NEAR: None, FAR: None}, rtts_s={NEAR: 0.01, FAR: 0.1})
        self.links = Links(self.hub)
        monkeypatch.setattr(relaying_module, "RelayedLinks", lambda _hub, _clock: self.links)
        self.mesh = Mesh({node: Member() for node in (PEER, NEAR, FAR, NEW)})
        self.mesh.rtts_s = {NEAR: 0.01, FAR: 0.02}
        self.clock = Clock0()
        self.relaying = Relaying(
            cast("Node", self.mesh),
            cast("LinkHub", self.hub),
            cast("Clock", self.clock),
            random.Random(1),
            is_willing=True,
        )

    async def look(self, after_s: float = 0.0) -> None:
        """Let time pass, look, and let what was begun end."""
        self.clock.time += after_s
        self.relaying._look()
        await settled()

    async def link(self) -> Connection | str:
        return await self.relaying.link(PEER, (PLACE,))


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


# Whom to ask


def test_relays_are_asked_in_order_of_the_whole_way_to_the_peer(scene: Scene) -> None:
    assert scene.relaying.candidates(PEER) == [NEAR, FAR]
    scene.mesh.rtts_s[NEAR] = 0.2
    assert scene.relaying.candidates(PEER) == [FAR, NEAR]


def test_a_way_that_was_not_measured_comes_after_all_that_were(scene: Scene) -> None:
    scene.hub.links[NEW] = None
    assert scene.relaying.candidates(PEER) == [NEAR, FAR, NEW]


@pytest.mark.parametrize("why", ["dead", "no member", "itself relayed", "silent", "the peer"])
def test_who_cannot_relay_is_not_asked(scene: Scene, why: str) -> None:
    if why == "dead":
        scene.mesh.members[NEAR].live = False
    elif why == "no member":
        del scene.mesh.members[NEAR]
    elif why == "itself relayed":
        scene.hub.links[NEAR] = FAR
    elif why == "silent":
        scene.hub.silent.add(NEAR)
    target = NEAR if why == "the peer" else PEER
    assert scene.relaying.candidates(target) == [FAR]


def test_the_present_relay_is_asked_last(scene: Scene) -> None:
    scene.hub.links[PEER] = NEAR
    assert scene.relaying.candidates(PEER) == [FAR, NEAR]


def test_a_relay_through_which_a_link_failed_is_asked_last(scene: Scene) -> None:
    scene.hub.relay_faults.failed(NEAR, PEER, scene.clock.now())
    assert scene.relaying.candidates(PEER) == [FAR, NEAR]
    scene.clock.time += RELAY_DISTRUST_S
    assert scene.relaying.candidates(PEER) == [NEAR, FAR]


def test_in_a_large_mesh_the_peers_neighbours_are_asked_first(scene: Scene) -> None:
    scene.mesh.near = [FAR]
    assert scene.relaying.candidates(PEER) == [FAR, NEAR]


# A link on demand


async def test_a_peer_that_answers_is_linked_directly(scene: Scene) -> None:
    scene.hub.answers[PEER] = True
    assert await scene.link() == "direct link to peer"
    assert scene.links.asked == []


async def test_a_peer_that_cannot_be_dialled_is_reached_through_a_relay_at_once(
    scene: Scene,
) -> None:
    scene.hub.answers[PEER] = False
    scene.links.willing = {FAR}
    async with asyncio.timeout(RELAY_AFTER_S / 2):
        assert await scene.link() == "link through far"


async def test_a_dial_that_the_network_swallows_is_not_waited_for_long(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relaying_module, "RELAY_AFTER_S", 0.01)
    scene.links.willing = {NEAR}
    assert await scene.link() == "link through near"


async def test_without_a_relay_the_dial_has_the_rest_of_its_time(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relaying_module, "RELAY_AFTER_S", 0.01)
    monkeypatch.setattr(relaying_module, "DIAL_TIMEOUT_S", 0.05)
    with pytest.raises(LinkLost, match="directly or through another one"):
        await scene.link()
    assert scene.links.asked == [(NEAR, FAR)]


# What is due


async def test_a_needed_peer_whose_dial_failed_is_looked_for_through_relays(scene: Scene) -> None:
    scene.links.willing = {NEAR}
    await scene.look()
    assert scene.links.asked == [], "the dial may still succeed"
    scene.relaying.link_event(DialFailed((PLACE,), PEER, "no route"))
    await scene.look()
    assert scene.relaying.relayed == {PEER: NEAR}
    assert scene.relaying.found == 1


async def test_a_new_link_is_a_new_chance_for_a_peer_without_a_relay(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.relaying.start(())
    await scene.look(RELAY_AFTER_S)
    assert len(scene.links.asked) == 1
    assert scene.relaying.failed == 1
    scene.links.willing = {NEAR}
    await scene.look(RELAY_ANSWERS_S)
    assert len(scene.links.asked) == 1, "the pause goes on"
    monkeypatch.setattr(relaying_module, "RELAY_ANSWERS_S", 0.0)
    scene.relaying.link_event(LinkUp(NEAR, PLACE))
    scene.clock.time += RELAY_ANSWERS_S
    await asyncio.sleep(0.01)
    assert scene.relaying.relayed == {PEER: NEAR}
    scene.relaying.stop()


async def test_a_peer_that_nobody_needs_or_that_is_dead_is_not_looked_for(scene: Scene) -> None:
    scene.mesh.members[PEER].live = False
    await scene.look()
    await scene.look(2 * RELAY_AFTER_S)
    scene.mesh.members[PEER].live = True
    scene.mesh.needed = set()
    await scene.look(2 * RELAY_AFTER_S)
    assert scene.links.asked == []


async def test_a_search_that_found_nobody_is_counted_and_repeated_after_a_pause(
    scene: Scene,
) -> None:
    await scene.look()
    await scene.look(2 * RELAY_AFTER_S)
    assert scene.relaying.failed == 1
    await scene.look()
    assert len(scene.links.asked) == 1
    await scene.look(RELAY_RETRY_S)
    assert len(scene.links.asked) == 2


async def test_relays_that_were_not_asked_yet_are_asked_soon_after_the_others_failed(
    scene: Scene,
) -> None:
    more = [NodeId(f"more-{number}") for number in range(2 * MAX_RELAYS_ASKED)]
    for relay in more:
        scene.mesh.members[relay] = Member()
        scene.hub.links[relay] = None
    scene.links.willing = {more[-1]}  # the last one of ten, by all that is known
    await scene.look()
    await scene.look(2 * RELAY_AFTER_S)
    assert scene.relaying.failed == 1
    await scene.look(RELAY_ANSWERS_S)
    assert scene.relaying.relayed == {PEER: more[-1]}
    assert not scene.relaying._asked


async def test_when_all_were_asked_in_vain_they_are_asked_anew_after_the_pause(
    scene: Scene,
) -> None:
    await scene.look()
    await scene.look(2 * RELAY_AFTER_S)
    await scene.look(RELAY_ANSWERS_S)
    assert len(scene.links.asked) == 1, "nobody is left"
    await scene.look(RELAY_RETRY_S)
    assert scene.links.asked == 2 * [(NEAR, FAR)]


async def test_in_a_large_mesh_a_neighbour_of_the_peer_is_dialled_to_relay(scene: Scene) -> None:
    scene.mesh.near = [NEW, PEER]
    scene.hub.answers[NEW] = True
    scene.links.willing = {NEW}
    await scene.look()
    await scene.look(2 * RELAY_AFTER_S)
    assert scene.relaying.relayed == {PEER: NEW}


@pytest.mark.parametrize("what", ["the relay is silent", "the link broke", "the peer is silent"])
async def test_when_a_relay_is_lost_another_one_is_looked_for_at_once(
    scene: Scene, what: str
) -> None:
    scene.links.willing = {NEAR, FAR}
    scene.hub.links[PEER] = NEAR
    await scene.look()
    assert scene.links.asked == []
    if what == "the relay is silent":
        scene.hub.silent.add(NEAR)
    elif what == "the link broke":
        del scene.hub.links[NEAR], scene.hub.links[PEER]
    else:
        scene.hub.silent.add(PEER)
    await scene.look()
    assert scene.relaying.relayed == {PEER: FAR}


async def test_the_direct_way_is_tried_again_and_counted_when_it_is_taken(scene: Scene) -> None:
    scene.hub.links[PEER] = NEAR
    await scene.look()
    assert scene.hub.dialled == [PEER], "it called, and may be easy to dial"
    await scene.look()
    assert scene.hub.dialled == [PEER]
    await scene.look(DIRECT_RETRY_S)
    assert scene.hub.dialled == [PEER, PEER]
    scene.hub.links[PEER] = None
    await scene.look()
    assert scene.relaying.replaced == 1
    assert scene.relaying.relayed == {}


async def test_a_new_address_of_either_side_is_dialled_at_once(scene: Scene) -> None:
    scene.hub.links[PEER] = NEAR
    await scene.look()
    await scene.look()
    scene.hub.dialled.clear()
    scene.mesh.members[PEER].record = Record((("198.51.100.7", 8471),))
    await scene.look()
    assert scene.hub.dialled == [PEER]


async def test_a_much_nearer_relay_takes_over(scene: Scene) -> None:
    scene.links.willing = {NEAR, FAR}
    scene.hub.links[PEER] = FAR
    scene.hub.rtts_s[PEER] = 0.12
    await scene.look()
    await scene.look(RELAY_REVIEW_S)
    assert scene.links.asked == [(NEAR,)]
    assert scene.relaying.relayed == {PEER: NEAR}


async def test_a_link_does_not_move_to_a_nearer_relay_through_which_links_failed(
    scene: Scene,
) -> None:
    scene.links.willing = {NEAR, FAR}
    scene.hub.links[PEER] = FAR
    scene.hub.rtts_s[PEER] = 0.12
    scene.hub.relay_faults.failed(NEAR, PEER, scene.clock.now())
    await scene.look()
    await scene.look(RELAY_REVIEW_S)
    assert scene.links.asked == []
    await scene.look(RELAY_DISTRUST_S)
    assert scene.links.asked == [(NEAR,)], "it has a new chance after a while"


# Turns of the loop


async def test_a_link_that_goes_down_is_seen_to_in_the_same_turn(scene: Scene) -> None:
    scene.links.willing = {FAR}
    scene.hub.links[PEER] = NEAR
    scene.relaying.start(cast("Collection[Any]", ()))
    try:
        await settled()
        del scene.hub.links[PEER]
        scene.relaying.link_event(LinkDown(PEER, "the relay was lost"))
        await settled()
        assert scene.relaying.relayed == {PEER: FAR}
    finally:
        scene.relaying.stop()
