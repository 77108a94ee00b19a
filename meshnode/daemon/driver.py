"""The real world's driver of `meshnode.node.Node`: events in, effects carried out.

It owns the sockets and the clock's timers. Everything that happens on a link, in a datagram or when
a timer is due becomes an event; what the node answers is done here, in order.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
from collections import Counter
from typing import TYPE_CHECKING

from meshnode.config import MAX_META_BYTES
from meshnode.effects import (
    CloseLink,
    Dial,
    Effect,
    Emit,
    LoadModel,
    Persist,
    SendDatagram,
    SendNote,
    StartTimer,
    UnloadModel,
)
from meshnode.errors import MeshError
from meshnode.events import DatagramReceived, DialFailed, Event, LinkDown, NoteReceived, TimerFired
from meshnode.routing.load import LinkState
from meshnode.trust.datagrams import DatagramError, DatagramSeal
from meshnode.types import Address, NodeId

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from meshnode.clock import Clock
    from meshnode.daemon.credentials import Credentials
    from meshnode.daemon.serving import PeerServer
    from meshnode.datafolder import DataFolder
    from meshnode.net.connection import Connection
    from meshnode.net.links import LinkHub
    from meshnode.net.udp import DatagramSocket
    from meshnode.node import Node

log = logging.getLogger(__name__)

ModelEffect = LoadModel | UnloadModel


class Driver:
    """Carries out a node's effects, and turns what happens into its events.

    Attributes:
        hub: The links; set by `attach` before anything can happen.
        node: The cores; None until the node is a member of a mesh.
        dropped: Datagrams that were not accepted or could not be sent, by reason.
    """

    def __init__(self, *, folder: DataFolder, credentials: Credentials, clock: Clock) -> None:
        """Begin without links and without a node."""
        self._folder = folder
        self._credentials = credentials
        self._clock = clock
        self._seal = DatagramSeal(credentials.identity, credentials.boot)
        self._loop = asyncio.get_running_loop()
        self._udp: DatagramSocket | None = None
        self._hub: LinkHub | None = None
        self._early: list[Event] = []
        self._stopped = False
        self._on_model: Callable[[ModelEffect], None] | None = None
        self._listens_on_loopback = False
        self.peer_server: PeerServer | None = None
        self.node: Node | None = None
        self.dropped: Counter[str] = Counter()
        self.events: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<Driver of {self.node!r}>"

    @property
    def hub(self) -> LinkHub:
        """The links of this node."""
        assert self._hub is not None
        return self._hub

    def attach(self, hub: LinkHub, *, listens_on_loopback: bool) -> None:
        """Take the hub, before it listens or dials."""
        self._hub = hub
        self._listens_on_loopback = listens_on_loopback

    def begin(
        self,
        node: Node,
        udp: DatagramSocket,
        peer_server: PeerServer,
        on_model: Callable[[ModelEffect], None],
    ) -> None:
        """Take the node, and hand it what happened on links before it was there."""
        self.node = node
        self._udp = udp
        self.peer_server = peer_server
        self._on_model = on_model
        early, self._early = self._early, []
        for event in early:
            self.handle(event)

    @property
    def mesh_id(self) -> str | None:
        """The mesh that this node is a member of."""
        return self._credentials.mesh_id

    def dial_heard(self, addresses: tuple[Address, ...], node: NodeId) -> None:
        """Dial a node of the mesh that announced itself on the local network."""
        if node not in self.hub.peers():
            self._dial(addresses, node)

    def stop(self) -> None:
        """Carry out nothing more and ignore timers."""
        self._stopped = True

    def handle(self, event: Event) -> None:
        """Tell the node; do what it asks."""
        if self._stopped:
            return
        if self.node is None:
            self._early.append(event)
            return
        effects = self.node.handle(event, self._clock.now(), self._clock.wall_s())
        try:
            self.carry_out(effects)
        except MeshError as error:
            log.error("an effect could not be carried out: %s", error)

    def carry_out(self, effects: Sequence[Effect]) -> None:
        """Do what a core asked for, in order.

        Raises:
            ConfigError: if something could not be written to disk; what came after it was not
                done, so nobody was told of what is not durable.
        """
        for effect in effects:
            match effect:
                case SendDatagram(to, payload):
                    self._send_datagram(to, payload)
                case SendNote(to, payload):
                    if len(payload) <= MAX_META_BYTES:
                        self.hub.note(to, payload)
                    else:
                        self.dropped["note_too_large"] += 1
                case StartTimer(timer, delay_s):
                    self._loop.call_later(delay_s, self._timer_due, timer)
                case Dial(addresses, expect):
                    self._dial(addresses, expect)
                case CloseLink(to, reason):
                    self.hub.close_link(to, reason)
                case Persist(key, value):
                    self._folder.save_state(key, value)
                case LoadModel() | UnloadModel():
                    assert self._on_model is not None
                    self._on_model(effect)
                case Emit():
                    self._emitted(effect)

    def datagram_received(self, data: bytes) -> None:
        """Open a datagram; one that is not a member's is dropped without an answer."""
        if self.node is None:
            return
        try:
            sender, payload = self._seal.open(data, self._credentials.roster.public_key)
        except DatagramError as error:
            self.dropped[str(error.reason)] += 1
            return
        self.handle(DatagramReceived(sender, payload))

    # LinkUser

    def link_event(self, event: Event) -> None:
        """A link came up or went down, or a dial failed."""
        if isinstance(event, LinkDown) and self.node is not None:
            self.node.router.link_changed(event.peer, LinkState.DOWN)
        self.handle(event)

    def link_established(self, connection: Connection) -> None:
        """A hello succeeded: the peer is a member, and its datagrams can be opened."""
        assert connection.hello is not None
        hello = connection.hello
        if connection.dialler and hello.admitted is not None:
            self._credentials.admitted(hello.admitted)
        self._credentials.learn(hello.peer)
        if not self._seal.set_peer_boot(hello.peer.node_id, hello.peer_boot):
            log.warning("node %s seems to run twice: an earlier start is back", hello.peer.node_id)

    def link_health(self, peer: NodeId, rtt_s: float | None, usable: bool) -> None:
        """Tell routing about a link's state and round trip."""
        if self.node is None:
            return
        router = self.node.router
        if usable:
            router.link_changed(peer, LinkState.UP)
        elif peer in self.hub.peers():
            stalled = self.hub.is_stalled(peer)
            router.link_changed(peer, LinkState.STALLED if stalled else LinkState.GOING_AWAY)
        if rtt_s is not None:
            router.rtt_measured(peer, rtt_s)

    def note_received(self, peer: NodeId, payload: bytes) -> None:
        """A one-way message for the cores."""
        self.handle(NoteReceived(peer, payload))

    def stream_opened(
        self, connection: Connection, stream: int, meta: bytes, data: memoryview
    ) -> None:
        """A peer asks something."""
        if self.peer_server is None:
            connection.refuse(stream)
        else:
            self.peer_server.opened(connection, stream, meta, data)

    def stream_cancelled(self, connection: Connection, stream: int) -> None:
        """A peer does not want its answer any more."""
        if self.peer_server is not None:
            self.peer_server.cancelled(connection, stream)

    def connection_closed(self, connection: Connection) -> None:
        """Nobody waits for answers on this connection any more."""
        if self.peer_server is not None:
            self.peer_server.closed(connection)

    # Inside

    def _timer_due(self, timer: Hashable) -> None:
        self.handle(TimerFired(timer))

    def _send_datagram(self, to: NodeId, payload: bytes) -> None:
        public_key = self._credentials.roster.public_key(to)
        address = self._udp_address(to)
        if public_key is None or address is None or self._udp is None:
            self.dropped["no_address"] += 1
            return
        try:
            self._udp.send(self._seal.seal(to, public_key, payload), address)
        except MeshError as error:
            self.dropped[error.code] += 1

    def _udp_address(self, to: NodeId) -> Address | None:
        """Return where a member takes datagrams.

        Only ever an address of its signed record, or the one at which its authenticated link ends.
        """
        assert self.node is not None
        member = self.node.membership.members.get(to)
        if member is None or not member.record.addresses:
            return None
        advertised = [Address(*address) for address in member.record.addresses]
        remote = self.hub.remote_address(to)
        if remote is None:
            return next((each for each in advertised if _is_literal(each.host)), None)
        port = next((each.port for each in advertised if each.host == remote.host), None)
        return Address(remote.host, advertised[0].port if port is None else port)

    def _dial(self, addresses: tuple[Address, ...], expect: NodeId | None) -> None:
        usable = tuple(each for each in addresses if expect is None or self._may_dial(each.host))
        if usable:
            self.hub.dial(usable, expect)
        else:
            self._loop.call_soon(
                self.handle, DialFailed(addresses, expect, "none of its addresses may be dialled")
            )

    def _may_dial(self, host: str) -> bool:
        """Whether an address from another node's record may be dialled.

        A peer elsewhere must not make this node talk to its own loopback or to a link-local
        (cloud metadata) address.
        """
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return True
        return self._listens_on_loopback or not (address.is_loopback or address.is_link_local)

    def _emitted(self, emit: Emit) -> None:
        self.events[emit.kind] += 1
        level = logging.INFO
        if emit.kind.endswith(("refused", "overtaken")):
            level = logging.WARNING
        log.log(level, "%s %s %s", emit.kind, emit.subject, emit.detail)


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def seeded_random() -> random.Random:
    """Return a generator seeded by the operating system, for the cores of a real node."""
    return random.Random(random.SystemRandom().getrandbits(128))
