"""Whom a node dials that it heard on the local network."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from meshnode.daemon.local_network import LocalNetwork
from meshnode.net.mdns import Announcement
from meshnode.types import Address, NodeId, NodeState

MESH = "0" * 32


def heard(letter: str, mesh_id: str = MESH) -> Announcement:
    return Announcement(NodeId(letter * 32), mesh_id, letter, (Address("10.0.0.9", 8471),))


def test_members_that_are_alive_are_left_to_membership_and_all_others_are_dialled() -> None:
    """A large mesh has no link between most of its members, and wants none."""
    states = {
        "b": NodeState.ALIVE,
        "c": NodeState.SUSPECT,
        "d": NodeState.DEAD,
        "e": NodeState.LEFT,
    }
    members = {NodeId(each * 32): SimpleNamespace(state=state) for each, state in states.items()}
    dialled: list[NodeId] = []
    driver: Any = SimpleNamespace(
        mesh_id=MESH,
        node=SimpleNamespace(me=NodeId("a" * 32), membership=SimpleNamespace(members=members)),
        hub=SimpleNamespace(peers=lambda: (NodeId("e" * 32),)),
        dial_heard=lambda _, node: dialled.append(node),
    )
    network = LocalNetwork(driver, ())
    network.dial([*map(heard, "abcdef"), heard("g", mesh_id="1" * 32)])
    assert dialled == [NodeId(each * 32) for each in "cdf"]
