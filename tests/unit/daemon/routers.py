"""Nodes that send each other datagrams in one process, over a network with routers."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from meshnode.daemon.datagrams import Datagrams
from meshnode.membership.addresses import Kind
from meshnode.trust.identity import Identity
from meshnode.types import Address

if TYPE_CHECKING:
    from meshnode.types import NodeId

CLOUD = Address("203.0.113.7", 8471)
HOME = Address("192.168.1.10", 8471)
ROUTER = Address("198.51.100.2", 40_000)
VICTIM = Address("198.51.100.99", 53)


class Network:
    """Carries datagrams at once; routers translate what leaves a home, and let answers in."""

    def __init__(self) -> None:
        self.now = 0.0
        self.nodes: dict[Address, Node] = {}
        self.routers: dict[Address, Address] = {}
        """Where a home's datagrams seem to come from."""
        self.sent: list[tuple[Address, Address, bytes]] = []
        """From (as seen outside), to, what."""
        self.delivers = True

    def carry(self, sender: Address, to: Address, data: bytes) -> None:
        source = self.routers.get(sender, sender)
        self.sent.append((source, to, data))
        inside = {outside: inside for inside, outside in self.routers.items()}
        target = self.nodes.get(inside.get(to, to))
        is_open = to not in self.routers  # a private address is reached from nowhere
        if target is not None and is_open and self.delivers:
            target.receive(data, source)


class Node:
    """One node's datagrams between fakes."""

    def __init__(self, network: Network, name: str, address: Address, boot: int) -> None:
        self.network, self.address = network, address
        self.identity = Identity(hashlib.sha256(name.encode()).digest())
        self.id = self.identity.node_id
        self.keys: dict[NodeId, bytes] = {}
        self.linked: dict[NodeId, tuple[Address, bool]] = {}
        self.boots: dict[NodeId, int] = {}
        self.members: dict[NodeId, Any] = {}
        self.heard: list[bytes] = []
        self.dropped: Counter[str] = Counter()
        self.boot = boot
        credentials = SimpleNamespace(
            identity=self.identity,
            boot=boot,
            roster=SimpleNamespace(public_key=self.keys.get),
            random_bytes=os.urandom,
        )
        clock = SimpleNamespace(now=lambda: network.now)
        self.datagrams = Datagrams(cast("Any", credentials), cast("Any", clock), self.dropped)
        hub = SimpleNamespace(
            peers=lambda: tuple(self.linked),
            remote_address=lambda peer: self.linked[peer][0] if peer in self.linked else None,
            has_dialled=lambda peer: self.linked.get(peer, (None, False))[1],
            boot=self.boots.get,
        )
        self.datagrams.attach(cast("Any", hub), frozenset({Kind.ROUTED}), (address.host,))
        udp = SimpleNamespace(send=lambda data, to: network.carry(address, to, data))
        self.datagrams.begin(cast("Any", udp), self.members)
        network.nodes[address] = self

    def knows(self, other: Node, *addresses: Address) -> None:
        """Have the other's record."""
        record = SimpleNamespace(
            node_id=other.id, boot=other.boot, addresses=addresses or (other.address,)
        )
        self.keys[other.id] = other.identity.public_key
        self.members[other.id] = SimpleNamespace(record=record)
        self.datagrams.learn(cast("Any", record))

    def receive(self, data: bytes, source: Address) -> None:
        opened = self.datagrams.receive(data, source)
        if opened is not None:
            self.heard.append(opened[1])

    def send(self, to: Node, payload: bytes = b"a ping with a coordinate") -> None:
        self.datagrams.send(to.id, payload)


def home_and_cloud(network: Network) -> tuple[Node, Node]:
    """A node behind a router that knows one in a cloud; neither has a link."""
    network.routers[HOME] = ROUTER
    home, cloud = Node(network, "home", HOME, 1), Node(network, "cloud", CLOUD, 2)
    home.knows(cloud)
    cloud.knows(home)
    return home, cloud


def to_victim(network: Network, victim: Address = VICTIM) -> list[bytes]:
    return [data for _, to, data in network.sent if to == victim]
