"""Nodes of one mesh with real sockets on loopback, all in one process."""

from __future__ import annotations

import asyncio
import hashlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import pytest
import uvloop

from meshnode.events import DialFailed, Event, LinkDown, LinkUp
from meshnode.net.clock import RealClock
from meshnode.net.links import LinkHub
from meshnode.net.relay import Relay
from meshnode.net.tls import ServerTls, server_tls
from meshnode.trust.chain import VerifiedMember, admit, found_mesh
from meshnode.trust.hello import AcceptorHello, DiallerHello
from meshnode.trust.identity import Identity
from meshnode.trust.invite import Invite, create_invite
from meshnode.trust.roster import Roster
from meshnode.types import Address, NodeId, Role
from meshnode.wire.config import LinkConfig
from meshnode.wire.frames import WIRE_VERSIONS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from meshnode.errors import MeshError
    from meshnode.net.connection import Connection
    from meshnode.trust.reasons import TrustError

LIMIT_S = 10.0
WALL_S = 1_800_000_000.0
LOOPBACK = Address("127.0.0.1", 0)

FAST = LinkConfig(
    ping_interval_s=0.05,
    idle_ping_after_s=0.05,
    stall_ping_after_s=0.05,
    stall_after_s=0.15,
    dead_after_s=1.0,
)
"""Notices a silent peer in 0.2 s."""


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run what touches sockets on both event loops: they differ in how they close them."""
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if item.path.stem in ("test_links", "test_streams", "test_udp", "test_relay"):
        loops["uvloop"] = uvloop.new_event_loop
    return loops


async def eventually(condition: Callable[[], Any], what: str = "it happens") -> Any:
    """Wait until a condition holds and return its value; fail when it never does."""
    deadline = asyncio.get_running_loop().time() + LIMIT_S
    while not (value := condition()):
        if asyncio.get_running_loop().time() > deadline:
            pytest.fail(f"not within {LIMIT_S} s: {what}")
        await asyncio.sleep(0.002)
    return value


def seed_of(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


class Serve(Protocol):
    """What answers the streams that peers open."""

    def opened(
        self, connection: Connection, stream: int, meta: bytes, data: memoryview
    ) -> None: ...

    def cancelled(self, connection: Connection, stream: int) -> None: ...

    def closed(self, connection: Connection) -> None: ...


class Echo:
    """Answers each stream with what it got; remembers what was cancelled."""

    def __init__(self) -> None:
        self.cancels: list[int] = []
        self.closes: list[Connection] = []
        self.asked: list[bytes] = []

    def opened(self, connection: Connection, stream: int, meta: bytes, data: memoryview) -> None:
        self.asked.append(meta)
        connection.reply(stream, meta, [data], end=True)

    def cancelled(self, connection: Connection, stream: int) -> None:
        self.cancels.append(stream)

    def closed(self, connection: Connection) -> None:
        self.closes.append(connection)


class Mute(Echo):
    """Takes every stream and answers none."""

    def opened(self, connection: Connection, stream: int, meta: bytes, data: memoryview) -> None:
        self.asked.append(meta)


@dataclass
class User:
    """Records what the hub tells."""

    serve: Serve = field(default_factory=Echo)
    refuses: MeshError | None = None
    events: list[Event] = field(default_factory=list)
    notes: list[tuple[NodeId, bytes]] = field(default_factory=list)
    health: dict[NodeId, tuple[float | None, bool]] = field(default_factory=dict)
    established: list[Connection] = field(default_factory=list)
    twins: list[tuple[NodeId, int]] = field(default_factory=list)
    refusals: list[TrustError] = field(default_factory=list)
    relay: Relay = field(init=False)

    def link_event(self, event: Event) -> None:
        self.events.append(event)

    def link_established(self, connection: Connection) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.established.append(connection)

    def link_health(self, peer: NodeId, rtt_s: float | None, usable: bool) -> None:
        self.health[peer] = (rtt_s, usable)

    def note_received(self, peer: NodeId, payload: bytes) -> None:
        self.notes.append((peer, payload))

    def stream_opened(
        self, connection: Connection, stream: int, meta: bytes, data: memoryview
    ) -> None:
        self.serve.opened(connection, stream, meta, data)

    def conversation_opened(self, connection: Connection, stream: int, meta: bytes) -> None:
        self.relay.conversation_opened(connection, stream, meta)

    def stream_cancelled(self, connection: Connection, stream: int) -> None:
        self.serve.cancelled(connection, stream)

    def connection_closed(self, connection: Connection) -> None:
        self.serve.closed(connection)

    def twin_met(self, peer: NodeId, boot: int, remote: Address) -> None:
        assert remote.host == LOOPBACK.host
        self.twins.append((peer, boot))

    def hello_refused(self, error: TrustError) -> None:
        self.refusals.append(error)

    def ups(self) -> list[NodeId]:
        return [event.peer for event in self.events if isinstance(event, LinkUp)]

    def downs(self) -> list[LinkDown]:
        return [event for event in self.events if isinstance(event, LinkDown)]

    def failures(self) -> list[DialFailed]:
        return [event for event in self.events if isinstance(event, DialFailed)]


class Node:
    """One node: its place in the mesh, its hub, and where it listens."""

    def __init__(
        self,
        identity: Identity,
        credential: VerifiedMember | Invite,
        roster: Roster,
        tls: ServerTls,
        *,
        boot: int,
        config: LinkConfig,
    ) -> None:
        self.identity = identity
        self.id = identity.node_id
        self.credential = credential
        self.roster = roster
        self.boot = boot
        self.tls = tls
        self.user = User()
        self.address = LOOPBACK
        self.hub = LinkHub(
            me=identity.node_id,
            clock=RealClock(),
            user=self.user,
            tls=tls,
            dial_hello=self._dial_hello,
            accept_hello=self._accept_hello,
            config=config,
        )
        self.user.relay = self.relay = Relay(self.hub, RealClock(), is_willing=True)

    async def listen(self) -> Node:
        self.address = await self.hub.listen(LOOPBACK)
        self.hub.start_accepting()
        return self

    async def join(self, other: Node) -> Connection:
        """Link to another node; return this side's connection when both sides have it."""
        connection = await self.hub.connect((other.address,), other.id)
        await eventually(lambda: self.id in other.hub.peers(), "the other side has the link")
        return connection

    def _dial_hello(self, certificate_hash: bytes, expect: NodeId | None) -> DiallerHello:
        return DiallerHello(
            identity=self.identity,
            credential=self.credential,
            boot=self.boot,
            nonce=os.urandom(32),
            certificate_hash=certificate_hash,
            versions=WIRE_VERSIONS,
            expect=expect,
        )

    def _accept_hello(self) -> AcceptorHello:
        assert isinstance(self.credential, VerifiedMember)
        return AcceptorHello(
            identity=self.identity,
            member=self.credential,
            roster=self.roster,
            boot=self.boot,
            nonce=os.urandom(32),
            certificate_hash=self.tls.certificate_hash,
            versions=WIRE_VERSIONS,
            wall_s=WALL_S,
        )


class MeshMaker:
    """Makes nodes of one mesh and closes them all."""

    def __init__(self, tls: ServerTls) -> None:
        self._tls = tls
        self._founder = Identity(seed_of("founder"))
        self._root = found_mesh(self._founder, seed_of("root"), WALL_S)
        self.nodes: list[Node] = []

    def invite(self, name: str) -> Invite:
        return create_invite(
            identity=self._founder,
            member=self._root,
            role=Role.OPERATOR,
            ttl_s=3600,
            now_wall_s=WALL_S,
            seeds=(),
            random_seed=seed_of(f"invite of {name}"),
        )

    def member(self, name: str) -> VerifiedMember:
        if name == "founder":
            return self._root
        identity = Identity(seed_of(name))
        invite = self.invite(name)
        return admit(
            witness=self._founder,
            witness_member=self._root,
            inviter=self._root,
            grant=invite.signed_grant,
            subject=identity.public_key,
            invite_proof=invite.prove(identity.public_key),
            now_wall_s=WALL_S,
        )

    def build(
        self,
        name: str,
        *,
        boot: int = 1,
        config: LinkConfig | None = None,
        credential: VerifiedMember | Invite | None = None,
    ) -> Node:
        """Make a node that does not listen."""
        roster = Roster(self._root.mesh_id)
        roster.add(self._root.chain)
        node = Node(
            Identity(seed_of(name)),
            credential or self.member(name),
            roster,
            self._tls,
            boot=boot,
            config=config or LinkConfig(),
        )
        self.nodes.append(node)
        return node

    async def start(self, name: str, **options: Any) -> Node:
        return await self.build(name, **options).listen()

    async def pair(self, **options: Any) -> tuple[Node, Node, Connection]:
        """Two nodes and the first one's connection to the second."""
        one, two = await self.start("one", **options), await self.start("two", **options)
        return one, two, await one.join(two)


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ServerTls:
    return server_tls(tmp_path_factory.mktemp("tls"))


@pytest.fixture
async def mesh(tls: ServerTls) -> AsyncIterator[MeshMaker]:
    maker = MeshMaker(tls)
    yield maker
    for node in maker.nodes:
        await node.hub.close()
