"""Nodes that run both states in the simulator's world, linked to some of each other."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from meshnode.effects import Dial, Effect, StartTimer
from meshnode.events import DialFailed, Event, LinkDown, Start, TimerFired
from meshnode.sim.core_world import CoreWorld
from meshnode.sim.network import NetworkConfig
from meshnode.state.config import DesiredConfig, OwnerConfig
from meshnode.state.desired import DesiredState
from meshnode.state.owner import OwnerStates, OwnerTrust

if TYPE_CHECKING:
    from meshnode.sim.core_node import Boot
    from meshnode.state.desired_messages import Entry
    from meshnode.types import Address, NodeId


def sign_as(author: str) -> Callable[[bytes], bytes]:
    """Return a stand-in for a signature: whoever knows the author's name can make it."""

    def sign(data: bytes) -> bytes:
        return hashlib.sha256(author.encode() + data).digest()

    return sign


def owner_trust(me: str, epoch_of: Callable[[NodeId], int | None] = lambda _: 0) -> OwnerTrust:
    """Return the trust of a node to whom everybody is a live member, if not told otherwise."""
    return OwnerTrust(sign_as(me), lambda owner, data, said: sign_as(owner)(data) == said, epoch_of)


def verify(entry: Entry) -> str | None:
    """Accept the signatures of `sign_as`."""
    return (
        None if sign_as(entry.author)(entry.signed_bytes) == entry.signature else "wrong signature"
    )


@dataclass(frozen=True)
class Redial:
    address: Address
    expect: NodeId


class StateNode:
    """A core of both states that keeps links to given peers."""

    def __init__(self, boot: Boot, peers: Mapping[NodeId, Address], skew_s: float) -> None:
        self.peers = peers
        self.skew_s = skew_s
        self.gone: set[NodeId] = set()  # whom membership would have given up
        self.owner = OwnerStates(
            boot.node,
            boot.epoch,
            OwnerConfig(),
            boot.rng,
            owner_trust(boot.node, lambda owner: None if owner in self.gone else 0),
        )
        self.desired = DesiredState(
            boot.node, sign_as(boot.node), verify, DesiredConfig(), boot.rng,
            boot.disk.get("desired"),
        )  # fmt: skip

    def handle(self, event: Event, now: float, wall_s: float) -> list[Effect]:
        match event:
            case Start():
                dials: list[Effect] = [Dial((a,), node) for node, a in self.peers.items()]
            case LinkDown(peer, _) if peer in self.peers:
                dials = [StartTimer(Redial(self.peers[peer], peer), 1.0)]
            case DialFailed((address,), expect, _) if expect is not None:
                dials = [StartTimer(Redial(address, expect), 1.0)]
            case TimerFired(Redial(address, expect)):
                dials = [Dial((address,), expect)]
            case _:
                dials = []
        return [
            *self.owner.handle(event, now),
            *self.desired.handle(event, now, wall_s + self.skew_s),
            *dials,
        ]


class Mesh:
    """A world of state nodes called n0, n1, ..."""

    def __init__(self, count: int, seed: int, network: NetworkConfig | None = None) -> None:
        self.world = CoreWorld(seed, network or NetworkConfig())
        self.names = [f"n{i}" for i in range(count)]
        self.skew_s: dict[str, float] = {}
        draw = random.Random(seed)
        for i, name in enumerate(self.names):
            # The one before, so that each half of the names is connected in itself, and others.
            earlier = self.names[max(0, i - 1) : i] + draw.sample(
                self.names[: max(0, i - 1)], min(max(0, i - 1), 3)
            )
            peers = {self.world.id_of(p): self.world.address_of(p) for p in earlier}
            self.world.add_node(name, ("eu", "us", "asia")[i % 3], self._factory(name, peers))

    def _factory(self, name: str, peers: Mapping[NodeId, Address]) -> Callable[[Boot], StateNode]:
        return lambda boot: StateNode(boot, peers, self.skew_s.get(name, 0.0))

    def node(self, name: str) -> StateNode:
        core = self.world.core(name)
        assert isinstance(core, StateNode)
        return core

    def watch_note_sizes(self) -> list[int]:
        """Return a list that grows by the size of each note that is sent from now on."""
        sizes: list[int] = []
        send = self.world.links.send_note

        def send_watched(source: NodeId, to: NodeId, payload: bytes) -> None:
            sizes.append(len(payload))
            send(source, to, payload)

        self.world.links.send_note = send_watched  # type: ignore[method-assign]  # it calls through
        return sizes

    def say(self, name: str, key: str, value: bytes) -> None:
        owner = self.node(name).owner
        self.world.act(name, lambda now, _: owner.set(key, value, now))

    def unsay(self, name: str, key: str) -> None:
        owner = self.node(name).owner
        self.world.act(name, lambda now, _: owner.delete(key, now))

    def lose(self, name: str, owner: NodeId) -> None:
        """Let a node's membership give an owner up."""
        node = self.node(name)
        node.gone.add(owner)
        self.world.act(name, lambda _now, _wall_s: node.owner.forget(owner))

    def find(self, name: str, owner: NodeId) -> None:
        """Let a node's membership see an owner alive again."""
        node = self.node(name)
        node.gone.discard(owner)
        self.world.act(name, lambda _now, _wall_s: node.owner.welcome(owner))

    def put(self, name: str, key: str, value: bytes) -> None:
        node = self.node(name)

        def act(_: float, wall_s: float) -> list[Effect]:
            draft = node.desired.draft({key: value}, wall_s + node.skew_s)
            durable = [] if draft.persist is None else [draft.persist]
            return [*durable, *node.desired.commit(draft)]

        self.world.act(name, act)

    def remove(self, name: str, key: str) -> None:
        self.put(name, key, b"")

    def view(self, name: str) -> dict[NodeId, dict[str, bytes]]:
        owner = self.node(name).owner
        return {o: dict(owner.entries(o)) for o in owner.owners()}

    def owners_agree(self, names: Sequence[str] | None = None) -> bool:
        views = [self.view(name) for name in names or self.world.running()]
        return all(view == views[0] for view in views)

    def desired_agrees(self, names: Sequence[str] | None = None) -> bool:
        states = [self.node(name).desired for name in names or self.world.running()]
        maps = [[(k, s.entry(k), s.history(k)) for k, _ in s.items()] for s in states]
        return all(each == maps[0] for each in maps)


MakeMesh = Callable[..., Mesh]


@pytest.fixture
def make_mesh() -> MakeMesh:
    return Mesh
